"""One run from its plan to its record: stage after stage, each in a child of its own.

A stage that an earlier, interrupted call finished is kept. Whatever happens, the run ends with a record; a
failed stage leaves the finished ones in it.
"""

from __future__ import annotations

import gzip
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bench.running import store
from bench.running.fitting import fit
from bench.running.launch import Outcome, Watch, run_stage
from bench.running.provenance import provenance
from bench.running.reuse import take_over
from bench.running.serving import with_serving
from bench.spec.config import RunConfig, to_mapping
from bench.spec.failure import Status
from bench.spec.fitting import Fit
from bench.spec.identity import comparison_key, run_id
from bench.spec.layout import artifact_folder, data_folder, run_folder, write_atomic
from bench.spec.record import (
    DataSummary,
    EvaluateResult,
    Record,
    RegressionResult,
    Stage,
    TrainResult,
    from_json,
    to_json,
)

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


def prepare(config: RunConfig, watch: Watch = lambda progress: None, stage: Stage = "prepare") -> Outcome:
    """Fetch or build the model and the data of a run, and check both; quick when they are there already.

    Args:
        stage: "fetch" leaves out what only the device of the run can make; the run then makes it.

    Raises:
        ConfigurationError: mistakes in the data, the suite or the model's name.
    """
    with store.claim(run_folder(config)):
        folder = write_plan(config)
        return run_stage(folder, stage, config.hardware.stage_timeout_seconds, watch)


def execute(config: RunConfig, watch: Watch = lambda progress: None) -> Record:
    """Run what is missing of a run and write its record. Returns at once when it is finished."""
    with store.claim(run_folder(config)):
        record = store.read_record(run_folder(config))
        ended_well = record is not None and record.status is Status.OK
        if record is not None and ended_well and store.is_served(config, record):
            return record
        folder = write_plan(config)
        if not (data_folder(config) / "summary.json").exists():  # on a cluster node with a cache of its own
            run_stage(folder, "prepare", config.hardware.stage_timeout_seconds, watch)
        if record is None or not ended_well:
            (folder / "record.json").unlink(missing_ok=True)
            record = take_over(config, folder) or _run_stages(config, folder, watch)
            store.write_record(folder, record)
        if record.status is Status.OK and not store.is_served(config, record):
            record = with_serving(config, record, watch)
            store.write_record(folder, record)
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
        config=to_mapping(config),
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
    if isinstance(result, TrainResult) and not store.weights_are_whole(
        artifact_folder(config), result.checkpoint_bytes
    ):
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
