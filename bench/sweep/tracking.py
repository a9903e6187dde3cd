"""A finished record, and then the report, sent to Weights & Biases.

The record in its folder is the result; tracking is a copy of it. A tracker that fails is reported and changes
nothing. Nothing is sent unless `tracking=wandb` is chosen, and in its offline mode nothing leaves the machine.
`tracking=tensorboard` is transformers' own: the training stage writes its curves to `tensorboard/` in the run's folder.

>>> track(config, record)    # None, or what went wrong
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.config import RunConfig, to_mapping
from bench.identity import run_folder
from bench.record import Record


def tracking_problems(config: RunConfig) -> list[str]:
    """Why a run could not be tracked, known before it runs; at most one line."""
    missing = config.tracking.kind == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX"))
    how = 'needs tensorboardX: pip install -c constraints.txt -e ".[tensorboard]"'
    return [f"tracking=tensorboard: {how}"] if missing else []


def track(config: RunConfig, record: Record) -> str | None:
    """Send a record if the config asks for it. Returns what went wrong, or None."""
    kept = f"the record in {run_folder(config)} is complete without it"
    return _trouble(lambda: send_record(config, record), kept) if config.tracking.kind == "wandb" else None


def track_report(config: RunConfig, folder: Path) -> str | None:
    """Send a sweep's report, as an artifact, if the config asks for it. Returns what went wrong, or None."""
    kept = f"the report is in {folder}"
    return _trouble(lambda: send_report(config, folder), kept) if config.tracking.kind == "wandb" else None


def _trouble(send: Callable[[], None], kept: str) -> str | None:
    try:
        send()
    except Exception as error:  # a tracker's own trouble must never cost a finished run
        return f"tracking: {type(error).__name__}: {error}; {kept}"
    return None


def summary(record: Record) -> dict[str, float | str | None]:
    """The scalars of a record, by the names that the report uses."""
    values: dict[str, Any] = {"status": str(record.status), "wall_seconds": record.wall_seconds}
    if record.train:
        peaks = [m.peak_bytes for m in record.train.memory if m.phase == "train" and m.peak_bytes is not None]
        values |= {
            "train_tokens_per_second": record.train.train_tokens_per_second,
            "step_seconds_median": record.train.step_seconds_median,
            "train_peak_bytes": max(peaks, default=None),
            "heldout_loss_after": record.train.heldout[-1].loss if record.train.heldout else None,
        }
    if record.evaluate:
        values |= {f"score/{name}": value for name, value in record.evaluate.scores.items()}
    if record.regression:
        values |= {f"regression/{task.task}": task.value for task in record.regression.tasks}
    return values


def curves(record: Record, folder: Path) -> dict[int, dict[str, float]]:
    """Step -> its numbers: all of `steps.jsonl`, and the held-out loss where it was taken; unknown ones left out."""
    found: dict[int, dict[str, float]] = {}
    steps = folder / "steps.jsonl"
    for line in steps.read_text().splitlines() if record.train and steps.exists() else []:
        step = json.loads(line)
        found[step.pop("step")] = {f"train/{name}": value for name, value in step.items() if value is not None}
    for point in record.train.heldout if record.train else ():
        if point.loss is not None:
            found.setdefault(point.step, {})["heldout/loss"] = point.loss
    return dict(sorted(found.items()))


def predictions(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """(headers, a row a test example) of `samples.jsonl.gz`; no rows where nothing was evaluated."""
    path = folder / "samples.jsonl.gz"
    if not path.exists():
        return [], []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        samples = [json.loads(line) for line in file]
    scores = list(samples[0]["scores"]) if samples else []
    texts = ["example_id", "prompt", "reference", "prediction"]
    rows = [[*(s[name] for name in texts), *(s["scores"].get(name) for name in scores)] for s in samples]
    return [*texts, *scores], rows


def send_record(config: RunConfig, record: Record) -> None:
    """One run of the tracker for one of ours, grouped by sweep."""
    folder = run_folder(config)
    settings = to_mapping(record.config) | {"comparison_key": record.comparison_key}
    wandb, run = _open(config, folder, record.run_id, settings)
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
