"""A finished record, and then the report, sent to Weights & Biases.

The record in its folder is the result; tracking is a copy of it. A tracker that fails is reported and changes
nothing. Nothing is sent unless `tracking=wandb` is chosen, and in its offline mode nothing leaves the machine.
`tracking=tensorboard` is transformers' own: the training stage writes its curves to `tensorboard/` in the run's folder.

>>> track(config, record)    # None, or what went wrong
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import RunConfig, to_mapping
from bench.identity import run_folder
from bench.record import Record
from bench.trust import own_folder

if TYPE_CHECKING:
    from bench.stats.frames import Sweep


def tracking_problems(config: RunConfig) -> list[str]:
    """Why a run could not be tracked, known before it runs; at most one line."""
    missing = config.tracking.kind == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX"))
    how = 'needs tensorboardX: pip install -c constraints.txt -e ".[tensorboard]"'
    return [f"tracking=tensorboard: {how}"] if missing else []


def track(config: RunConfig, record: Record) -> str | None:
    """Send a record if the config asks for it. Returns what went wrong, or None."""
    return _sent(config, f"the record in {run_folder(config)} is complete without it", send_record, config, record)


def track_report(config: RunConfig, folder: Path) -> str | None:
    """Send a sweep's report, as an artifact, if the config asks for it. Returns what went wrong, or None."""
    return _sent(config, f"the report is in {folder}", send_report, config, folder)


def _sent(config: RunConfig, kept: str, send: Callable[..., None], *what: Any) -> str | None:
    try:
        if config.tracking.kind == "wandb":
            send(*what)
    except Exception as error:  # a tracker's own trouble must never cost a finished run
        return f"tracking: {type(error).__name__}: {error}; {kept}"
    return None


def summary(record: Record) -> dict[str, float | str]:
    """The numbers of a record, by the names of the frame of runs, and each task of its suite; unknown ones left out."""
    from bench.stats.frames import runs_frame  # pandas: only where something is sent

    row = runs_frame([record]).iloc[0]
    values = {str(name): value for name, value in row.items() if isinstance(value, float | int) and value == value}
    tasks = {f"regression/{task.task}": task.value for task in (record.regression.tasks if record.regression else ())}
    known = {name: value for name, value in tasks.items() if value is not None}
    return values | known | {"status": str(record.status)}


def curves(sweep: Sweep) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, its numbers): those of `steps.jsonl`, and the held-out loss where it was taken; unknown ones left out."""
    steps = sweep.steps.set_index("step").drop(columns="seed").select_dtypes("number").add_prefix("train/")
    heldout = sweep.heldout.set_index("step")["loss"].astype(float).rename("heldout/loss")
    for step, values in steps.join(heldout, how="outer").iterrows():
        yield int(str(step)), {str(name): float(value) for name, value in values.dropna().items()}


def send_record(config: RunConfig, record: Record) -> None:
    """One run of the tracker for one of ours, grouped by sweep."""
    from bench.stats.frames import load

    folder = run_folder(config)
    sweep, settings = load(folder), to_mapping(record.config) | {"comparison_key": record.comparison_key}
    wandb, run = _open(config, folder, record.run_id, settings)
    for step, values in curves(sweep):
        run.log(values, step=step)
    tables = {"predictions": sweep.samples.drop(columns="unscored"), "regression": sweep.regression}
    if shown := {name: wandb.Table(dataframe=frame) for name, frame in tables.items() if len(frame)}:
        run.log(shown)
    run.summary.update(summary(record))
    run.finish()


def send_report(config: RunConfig, folder: Path) -> None:
    """The report of a sweep, with its plots and tables, as one artifact."""
    wandb, run = _open(config, folder, f"{folder.name}-report", {}, job_type="report")
    artifact = wandb.Artifact(f"report-{re.sub(r'[^A-Za-z0-9._-]', '-', folder.name)}", type="report")
    files = [folder / name for name in ("report.html", "report.md", "fairness.json")]
    files += [file for name in ("plots", "tables") for file in (folder / name).glob("*")]
    for file in filter(Path.is_file, files):
        artifact.add_file(str(file), name=str(file.relative_to(folder)))
    run.log_artifact(artifact)
    run.finish()


def _open(config: RunConfig, folder: Path, name: str, settings: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """(the module, a run of it)."""
    own = Path(config.paths.cache).resolve() / "wandb"
    own.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):  # else it writes to the home folder
        os.environ.setdefault(variable, str(own))
    import wandb  # a second to import, and only here

    own_folder(folder / "wandb")
    run = wandb.init(
        project=config.tracking.project,
        mode=config.tracking.mode,
        name=name,
        group=config.sweep,
        dir=str(folder),
        config=settings,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        **options,
    )
    return wandb, run
