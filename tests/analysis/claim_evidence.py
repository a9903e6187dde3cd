"""Runs made up for one claim at a time: records, steps and scores whose quantities are known beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from synthetic import METHODS, make_record, make_steps

from bench.analysis import stats
from bench.analysis.claims import Verdict, judge
from bench.analysis.measured import Evidence
from bench.analysis.measures import OVERALL, Measure
from bench.analysis.pairing import group_arms
from bench.analysis.values import Values
from bench.config import to_mapping, with_settings
from bench.record import Record, Step, Tuning
from bench.stats.claim_files import from_mappings

ROUGE = Measure("score", "rougeL")
ALL_TASKS = Measure("regression", OVERALL, True, "mean")
INSTRUCTIONS = Measure("regression", "instructions", True, "exact_match")


def run(method: str, seed: int = 0, *, train: Mapping[str, Any] | None = None, **settings: Any) -> Record:
    """A synthetic run with other settings of its method (`rank=8` in its adapter, `double_quantization` in its
    quantization, others at the top) and other training results (`train`)."""
    record = make_record(method, seed)
    method = to_mapping(record.config)["method"]
    changed = {}
    for name, value in settings.items():
        part = next((f"{part}." for part in ("adapter", "quantization") if name in (method[part] or {})), "")
        changed[f"method.{part}{name}"] = value
    config = with_settings(record.config, changed)
    told = "-".join(str(value) for value in settings.values())
    record = replace(record, run_id=f"{record.run_id}-{told}", config=config)
    return replace(record, train=replace(record.train, **train)) if train and record.train else record


def evidence(
    runs: Sequence[Record],
    *,
    steps: Mapping[str, Sequence[Step]] | None = None,
    values: Mapping[Measure, Mapping[str, Iterable[float]]] | None = None,
    tunings: Sequence[Tuning] = (),
) -> Evidence:
    """The runs with their synthetic steps; `values`: of each measure, by run_id, one an example."""
    of_runs = {r.run_id: make_steps(r.method, r.seed) for r in runs if r.train and r.method in METHODS}
    tables = {
        measure: {run_id: Values.plain(list(rows)) for run_id, rows in by_run.items()}
        for measure, by_run in (values or {}).items()
    }
    rng = stats.Resampler(np.random.default_rng(0), draws=2000)
    return Evidence(group_arms(runs), of_runs | dict(steps or {}), tables, {}, rng, tunings)


def verdict(of: Evidence, *checks: Mapping[str, Any], **claim: Any) -> Verdict:
    """The verdict on a claim of these checks."""
    content = {"id": "mine", "says": "As the checks say.", "checks": list(checks)} | claim
    return judge(from_mappings({"mine.yaml": {"source": "Mine", "claims": [content]}}), of)[0]
