"""Made-up runs whose needs are known, as one `Case`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from synthetic import make_items, make_record, make_samples

from bench.analysis import frame
from bench.analysis.choice import Contest
from bench.analysis.compare import Margins, compare
from bench.analysis.limits import Case
from bench.analysis.needs import needs_of_arms
from bench.analysis.pairing import group_arms
from bench.analysis.recommend import arms_frame
from bench.config import with_settings
from bench.record import Fidelity, PhaseMemory, Record, ServeResult

MIB = 2**20
PEAKS = {"full": 4397 * MIB, "lora": 2552 * MIB, "qlora": 2375 * MIB}  # of seed 0; seed 1 takes 8 MiB more
SECONDS = {"full": 32 * 2240 / 505, "lora": 32 * 2240 / 600, "qlora": 32 * 2240 / 540}


def runs(methods: str = "base full lora qlora", seeds: Sequence[int] = (0,)) -> list[Record]:
    """Finished runs; the base has one."""
    return [make_record(m, s) for m in methods.split() for s in ((0,) if m == "base" else seeds)]


def case_of(
    records: Sequence[Record],
    *,
    margin: float = 0.03,
    price: float | None = None,
    answers: Mapping[str, str] | None = None,
) -> Case:
    """The case of these records. `margin`: relative, of the score. `answers`: method -> the method it answers as."""
    alike = answers or {}
    samples = {r.run_id: make_samples(alike.get(r.method, r.method), r.seed) for r in records if r.evaluate}
    items = {r.run_id: make_items(alike.get(r.method, r.method), r.seed) for r in records if r.regression}
    margins = Margins(score_relative=margin)
    findings = compare(
        records,
        frame.samples_frame(samples, records),
        frame.regression_frame(items, records),
        rng=np.random.default_rng(0),
        margins=margins,
    )
    contest = Contest(findings, arms_frame(frame.runs_frame(records)), rng=np.random.default_rng(0))
    return Case(contest, needs_of_arms(group_arms(records), findings, price), margins)


def with_train(record: Record, **changed: Any) -> Record:
    """The run with other training results."""
    assert record.train is not None
    return replace(record, train=replace(record.train, **changed))


def with_memory(record: Record, *phases: PhaseMemory) -> Record:
    """The run with other peaks."""
    return with_train(record, memory=list(phases))


def with_environment(record: Record, **changed: Any) -> Record:
    """The run trained elsewhere."""
    assert record.train is not None
    return with_train(record, environment=replace(record.train.environment, **changed))


def with_hardware(record: Record, **changed: Any) -> Record:
    """The run with other settings of its hardware."""
    return replace(
        record, config=with_settings(record.config, {f"hardware.{name}": value for name, value in changed.items()})
    )


def with_merged(record: Record, *, merged: float, evaluated: float) -> Record:
    """The run with a serving stage that compared the merged form with the evaluated one."""
    assert record.train is not None
    whole = Fidelity("unmerged", 48, {"rougeL": evaluated}, 2.5)
    other = Fidelity("merged", 48, {"rougeL": merged}, 2.5, equal_answers=40)
    serve = ServeResult({}, [], [], [whole, other], None, None, None, {}, [], {}, record.train.environment)
    return replace(record, serve=serve)
