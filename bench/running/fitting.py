"""`train.micro_batch=auto`: the largest micro-batch within the memory budget, found by probes in child processes.

A probe is a tiny run of its own: the plan with a number in the place of `auto`, in `<run>/probes/<micro-batch>/`. When
it runs out of memory, nothing but the probe is lost.

>>> fit(config, folder, watch).status
<Status.OK: 'ok'>
>>> read_fit(folder).micro_batch
8
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import psutil
from pydantic import ValidationError

from bench.planning.micro_batch import first_size, largest_fitting, next_size, sizes
from bench.planning.plans import device_kind
from bench.running.launch import Outcome, Watch, run_stage
from bench.spec.config import RunConfig
from bench.spec.failure import Status, next_step
from bench.spec.fitting import Fit, Probe, ProbeResult
from bench.spec.identity import fit_key, run_id
from bench.spec.layout import data_folder, write_atomic
from bench.spec.record import DataSummary, Failure, from_json, to_json

FILE = "fit.json"
PROBES = "probes"


def fit(config: RunConfig, folder: Path, watch: Watch) -> Outcome:
    """Search, and write fit.json; an equal run of the sweep is not searched for again."""
    started = time.monotonic()
    known = _of_another_seed(config, folder)
    if known is not None:
        write_atomic(folder / FILE, to_json(known))
        return Outcome(Status.OK, time.monotonic() - started)
    allowed, tried, budget_bytes = sizes(config.train.batch_size), dict[int, Probe](), _budget_bytes(config)
    start = first_size(config, _longest(config), device_kind(config.hardware), budget_bytes)
    while (rows := next_size(allowed, {n: p.fits for n, p in tried.items()}, start)) is not None:
        probed, outcome = _probe(config, rows, folder / PROBES / str(rows), watch)
        if probed is None:
            return replace(outcome, failure=outcome.failure and replace(outcome.failure, stage="fit"))
        tried[rows], found_bytes = probed
        budget_bytes = found_bytes or budget_bytes
    wall_seconds = time.monotonic() - started
    found, is_largest = largest_fitting(allowed, {n: p.fits for n, p in tried.items()})
    if found is None:
        return Outcome(Status.OOM, wall_seconds, _nothing_fits(list(tried.values()), budget_bytes, folder))
    shutil.rmtree(folder / PROBES)
    fitted = Fit(found, budget_bytes or 0, tuple(tried.values()), is_largest, fit_key(config), run_id(config))
    write_atomic(folder / FILE, to_json(fitted))
    return Outcome(Status.OK, wall_seconds)


def read_fit(folder: Path) -> Fit | None:
    """A run's fit.json; None while there is none or it is torn."""
    try:
        return from_json(Fit, (folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def _of_another_seed(config: RunConfig, folder: Path) -> Fit | None:
    """What was found for the same method, data and budget: the longest examples are the same for every seed.

    Without a stated budget the device decides, which may be another one by then.
    """
    if config.hardware.memory_budget_gib is None:
        return None
    others = (read_fit(path.parent) for path in sorted(folder.parent.glob(f"*/{FILE}")))
    return next((other for other in others if other is not None and other.key == fit_key(config)), None)


def _probe(config: RunConfig, rows: int, folder: Path, watch: Watch) -> tuple[tuple[Probe, int | None] | None, Outcome]:
    """((what was found, the budget in bytes), how it ended); (None, ...): it ended neither well nor out of memory."""
    shutil.rmtree(folder, ignore_errors=True)
    probing = replace(config, train=replace(config.train, micro_batch=rows, checkpoint_every_steps=None))
    write_atomic(folder / "plan.json", to_json(probing))
    outcome = run_stage(folder, "probe", config.hardware.stage_timeout_seconds, watch)
    if outcome.status is Status.OOM:
        peak_bytes = outcome.failure.last_known_peak_bytes if outcome.failure else None
        return (Probe(rows, False, peak_bytes, "oom"), None), outcome
    if outcome.status is not Status.OK:
        return None, outcome
    result = from_json(ProbeResult, (folder / "probe.json").read_bytes())
    if result.peak_bytes is None:
        return None, Outcome(Status.ERROR, outcome.wall_seconds, _unmeasured(folder))
    fits = result.peak_bytes <= result.budget_bytes
    return (Probe(rows, fits, result.peak_bytes, "measured"), result.budget_bytes), outcome


def _budget_bytes(config: RunConfig) -> int | None:
    """For the start of the search alone; the probes know the device. None: unknown."""
    hardware = config.hardware
    if hardware.memory_budget_gib is not None:
        return int(hardware.memory_budget_gib * 2**30)
    if device_kind(hardware) == "cpu":
        return psutil.virtual_memory().available
    return None if hardware.memory_gib is None else int(hardware.memory_gib * 2**30)


def _longest(config: RunConfig) -> int:
    summary = from_json(DataSummary, (data_folder(config) / "summary.json").read_bytes())
    return summary.tokens_per_example_max


def _nothing_fits(probes: list[Probe], budget_bytes: int | None, folder: Path) -> Failure:
    last = min(probes, key=lambda probe: probe.micro_batch)
    peak = f"took {last.peak_bytes / 2**30:.2f} GiB" if last.peak_bytes and last.how != "oom" else "ran out of memory"
    budget = f" of a budget of {budget_bytes / 2**30:.2f} GiB" if budget_bytes else ""
    message = f"no micro-batch fits: train.micro_batch={last.micro_batch} {peak}{budget}"
    return _failure(message, Status.OOM, folder / PROBES / str(last.micro_batch), last.peak_bytes)


def _unmeasured(folder: Path) -> Failure:
    message = "train.micro_batch=auto: the peak memory of a process cannot be measured here; give a number"
    return _failure(message, Status.ERROR, folder, None)


def _failure(message: str, status: Status, folder: Path, peak_bytes: int | None) -> Failure:
    return Failure(
        stage="fit",
        phase="train",
        message=message,
        next_step=next_step(status, "fit", message),
        exit_code=None,
        log_tail=(folder / "probe.log").read_text(errors="replace")[-4000:],
        last_known_peak_bytes=peak_bytes,
    )
