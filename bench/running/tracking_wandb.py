"""Weights & Biases: curves, the scalars, tables of predictions and of the suite's tasks; a sweep's report as artifact.

Offline, a folder `wandb/` below the run's holds what `wandb sync` sends later.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bench.running.tracked import curves, predictions, summary
from bench.spec.config import RunConfig
from bench.spec.layout import run_folder
from bench.spec.record import Record

_FILES, _FOLDERS = ("report.html", "report.md", "fairness.json"), ("plots", "tables")


def send(config: RunConfig, record: Record) -> None:
    """One run of the tracker for one of ours, grouped by sweep."""
    folder = run_folder(config)
    wandb, run = _open(config, folder, record.run_id, record.config | {"comparison_key": record.comparison_key})
    for step, values in curves(record, folder).items():
        run.log(values, step=step)
    headers, rows = predictions(folder)
    tables = {"predictions": wandb.Table(columns=headers, data=rows)} if rows else {}
    if record.regression:
        tasks = [[t.task, t.metric, t.items, t.chance, t.value] for t in record.regression.tasks]
        tables["regression"] = wandb.Table(columns=["task", "metric", "items", "chance", "value"], data=tasks)
    if tables:
        run.log(tables)
    run.summary.update(summary(record))
    run.finish()


def send_report(config: RunConfig, folder: Path) -> None:
    """The report of a sweep, with its plots and tables, as one artifact."""
    wandb, run = _open(config, folder, f"{folder.name}-report", {}, job_type="report")
    artifact = wandb.Artifact(f"report-{re.sub(r'[^A-Za-z0-9._-]', '-', folder.name)}", type="report")
    files = [folder / name for name in _FILES] + [file for name in _FOLDERS for file in (folder / name).glob("*")]
    for file in filter(Path.is_file, files):
        artifact.add_file(str(file), name=str(file.relative_to(folder)))
    run.log_artifact(artifact)
    run.finish()


def _open(config: RunConfig, folder: Path, name: str, told: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """(the module, a run of it)."""
    own = Path(config.paths.cache).resolve() / "wandb"
    own.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):  # else it writes to the home folder
        os.environ.setdefault(variable, str(own))
    import wandb  # a second to import, and only here

    run = wandb.init(
        project=config.tracking.project,
        mode=config.tracking.mode,
        name=name,
        group=config.sweep,
        dir=str(folder),
        config=told,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        **options,
    )
    return wandb, run
