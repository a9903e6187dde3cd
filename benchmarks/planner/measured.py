"""Short runs through the ordinary harness, and the estimates of the same runs beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import run_folder
from bench.planner.advice import architecture_of
from bench.planner.memory import Batch, PlannedStep, Terms, estimate
from bench.record import Record
from bench.sweep.console import Console
from bench.sweep.execute import execute
from bench.sweep.fetching import prepare_all
from benchmarks.planner.cases import EMBEDDED, SIZES, Case
from benchmarks.planner.material import MICRO_BATCHES, STEPS, write_examples, write_model

MIB = 2**20


@dataclass(frozen=True)
class Run:
    """A case as it was measured and as it was estimated."""

    case: Case
    record: Record
    step: PlannedStep  # with the lengths that were consumed
    terms: Terms

    @property
    def peak_bytes(self) -> int | None:
        """Measured, of the phase `train`."""
        assert self.record.train is not None
        return next(phase.peak_bytes for phase in self.record.train.memory if phase.phase == "train")


def run_all(cases: Iterable[Case], folder: Path) -> list[Run]:
    """Train every case that has not been trained in the folder yet."""
    runs = []
    for case in cases:
        config = _config(case, folder)
        prepare_all([config], Console())
        record = execute(config)
        if record.train is None:
            print(f"{case.name}: {record.status}: {record.failure and record.failure.message}", flush=True)
            continue
        runs.append(_run(case, config, record))
        print(f"{case.name}: {_error(runs[-1].terms.total, runs[-1].peak_bytes)} of the peak", flush=True)
    return runs


def table(runs: list[Run]) -> str:
    """Estimated beside measured, MiB and the error in percent."""
    headers = ["run", "tokens", "weights", "gradients", "optimizer", "peak: estimated", "measured", "error"]
    rows = []
    for run in runs:
        assert run.record.train is not None
        measured = run.record.train.breakdown
        assert measured is not None
        pairs = [
            (run.step.static.weights, measured.weights_bytes),
            (run.step.static.gradients, measured.gradients_bytes),
            (run.step.static.optimizer, measured.optimizer_bytes),
        ]
        peak = (run.terms.total, run.peak_bytes)
        shape = f"{run.step.batch.rows}x{run.step.batch.length}"
        errors = [_error(*pair) for pair in pairs]
        rows.append([run.case.name, shape, *errors, *(_mib(value) for value in peak), _error(*peak)])
    aligned = ["left", "left", *["right"] * (len(headers) - 2)]
    return tabulate(rows, headers, "github", disable_numparse=True, colalign=aligned)


def overhead_table(runs: list[Run]) -> str:
    """What of the measured peak is none of the terms that have a formula, MiB."""
    headers = ["run", "peak", "of it by formula", "rest"]
    rows = []
    for run in runs:
        known = run.terms.total - run.terms.process - run.terms.allocator
        rest = None if run.peak_bytes is None else run.peak_bytes - known
        rows.append([run.case.name, _mib(run.peak_bytes), _mib(known), _mib(rest)])
    return tabulate(rows, headers, "github", disable_numparse=True, colalign=["left", "right", "right", "right"])


def _config(case: Case, folder: Path) -> RunConfig:
    """A run that only trains."""
    of_bytes = case.size != EMBEDDED
    model = ["model=smollm2-135m"]
    if of_bytes:
        weights = write_model(SIZES[case.size], folder.absolute() / "models" / case.size)
        model = ["model=folder", f"model.location={weights}", "model.max_context=8192"]
    batch = MICRO_BATCHES * case.micro_batch
    files = write_examples(
        folder / "data" / f"{'bytes' if of_bytes else 'words'}-{case.length}-{batch}",
        length=case.length,
        characters_per_token=1 if of_bytes else 4,
        examples=STEPS * batch,
    )
    (config,) = compose(
        [
            *model, f"method={case.method}", "task=jsonl", "suite=none", "task.max_new_tokens=4",
            *(f"task.{split}_file={file}" for split, file in files.items()),
            f"train.max_length={2 * case.length}", f"train.batch_size={batch}",
            f"train.micro_batch={case.micro_batch}", f"train.max_steps={STEPS}", "train.untimed_steps=2",
            "train.heldout_points=1", f"train.compile={case.compile}", *case.more,
            f"paths.results={folder}/results", f"paths.artifacts={folder}/artifacts", f"paths.cache={folder}/cache",
        ],
        multirun=False,
    )  # fmt: skip
    return replace(config, trial=True)


def _run(case: Case, config: RunConfig, record: Record) -> Run:
    assert record.train is not None
    environment = record.train.environment
    found = replace(config.hardware, compute_dtype=environment.compute_dtype, attention=environment.attention)
    step = PlannedStep(
        replace(config, hardware=found),
        architecture_of(config.model, config.paths),
        _consumed(config),
        "cuda" if environment.device.startswith("cuda") else "cpu",
        compiled=case.compile == "regional",
        accumulates=MICRO_BATCHES > 1,
    )
    return Run(case, record, step, estimate(step))


def _consumed(config: RunConfig) -> Batch:
    """The largest micro-batch, from the counts of the steps."""
    lines = (run_folder(config) / "steps.jsonl").read_text().splitlines()
    largest = max((json.loads(line) for line in lines), key=lambda step: step["positions"])
    rows = config.train.micro_batch
    return Batch(
        rows=rows,
        length=largest["positions"] // (MICRO_BATCHES * rows),
        supervised=largest["supervised_tokens"] // MICRO_BATCHES,
        padded=largest["positions"] != largest["tokens"],
    )


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / MIB:.0f}"


def _error(estimated: int, measured: int | None) -> str:
    """In percent of what was measured."""
    if measured is None:
        return "-"
    return f"{100 * (estimated / measured - 1):+.2f}%" if measured else ("0" if not estimated else "measured 0")
