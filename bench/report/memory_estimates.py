"""What training memory was made of, and beside it what the planner would have said of the same run.

>>> parts_frame(group)[["arm", "source", "part", "GiB"]]
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from bench.config import ConfigurationError
from bench.planner.advice import Machine, predict
from bench.planner.memory import Terms
from bench.planner.time import PlanConfig
from bench.record import Record
from bench.report.answer import Group
from bench.report.memory_plots import PARTS, peak_parts

ESTIMATED = (
    "Paler: what the planner says of the same run before it starts, for a micro-batch of the longest examples that "
    "were prepared. On a CUDA device both leave out the context and what the allocator only holds."
)


def parts_frame(group: Group) -> pd.DataFrame:
    """arm, source ("measured" or "estimated"), part, GiB, total GiB (the peak, or the sum); means over seeds."""
    measured = peak_parts(group.runs)
    labels = {column: label for column, label, _ in PARTS}
    rows = []
    arm_of = group.runs.set_index("run_id")["arm"]
    for arm, sizes in measured.iterrows():
        for column, label in labels.items():
            if sizes[column] > 0:
                rows.append((str(arm), "measured", label, sizes[column] / 2**30, sizes["train_peak_bytes"] / 2**30))
        record = next((r for r in group.records if arm_of[r.run_id] == arm and r.train), None)
        estimate = (estimated(record) if record else None) or {}
        for label, size in estimate.items():
            rows.append((str(arm), "estimated", label, size / 2**30, sum(estimate.values()) / 2**30))
    return pd.DataFrame(rows, columns=["arm", "source", "part", "GiB", "total GiB"])


def estimated(record: Record) -> dict[str, int] | None:
    """Label -> bytes; None where the planner cannot say: an unknown architecture, settings of another version.

    Nor is there one for several devices: what was measured is their sum, and the planner speaks of one.
    """
    if record.train is None or record.train.devices > 1:
        return None
    try:
        config = record.config
        known = record.data.tokens_per_example_max if record.data else config.train.max_length
        rows = record.train.micro_batch or config.train.fitted_micro_batch
        train = replace(config.train, max_length=min(config.train.max_length, known), micro_batch=rows)
        config = replace(config, train=train)
        cuda = record.train.environment.device.startswith("cuda")
        terms = predict(config, PlanConfig(), Machine("cuda" if cuda else "cpu", None))
    except (ValueError, ConfigurationError):  # pydantic's is a ValueError; so is a micro-batch that nothing fitted
        return None
    return {label: size for label, size in _parts(terms, cuda=cuda).items() if size}


def _parts(terms: Terms, *, cuda: bool) -> dict[str, int]:
    rest = terms.activations + terms.casts + terms.logits + terms.workspace
    process, allocator = (0, 0) if cuda else (terms.process, terms.allocator)
    sizes = (process, terms.weights, terms.gradients, terms.optimizer, rest + allocator)
    return {label: size for (_, label, _), size in zip(PARTS, sizes, strict=True)}
