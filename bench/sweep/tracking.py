"""A finished record, and then the report, sent to a tracker.

The record in its folder is the result; tracking is a copy of it. A tracker that fails is reported and changes
nothing. Nothing is sent unless `tracking=wandb` or `tracking=tensorboard` is chosen, and with the latter, or in
W&B's offline mode, nothing leaves the machine.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.config import RunConfig, to_mapping
from bench.identity import run_folder
from bench.record import Record, to_json


def track(config: RunConfig, record: Record) -> str | None:
    """Send a record if the config asks for it. Returns what went wrong, or None."""
    send = {"wandb": send_wandb, "tensorboard": send_tensorboard}.get(config.tracking.kind)
    kept = f"the record in {run_folder(config)} is complete without it"
    return _trouble(lambda: send(config, record), kept) if send else None


def track_report(config: RunConfig, folder: Path) -> str | None:
    """Send a sweep's report where its tracker takes one (W&B, as an artifact). Returns what went wrong, or None."""
    if config.tracking.kind != "wandb":
        return None
    return _trouble(lambda: send_report(config, folder), f"the report is in {folder}")


def _trouble(send: Callable[[], None], kept: str) -> str | None:
    try:
        send()
    except ImportError as error:
        return f'tracking: {error}; install it: pip install -c constraints.txt -e ".[tensorboard]"; {kept}'
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


def send_tensorboard(config: RunConfig, record: Record) -> None:
    """Event files, written anew."""
    from tensorboardX import SummaryWriter  # an extra

    folder = run_folder(config)
    target = folder / "tensorboard"
    for old in target.glob("events.out.*"):
        old.unlink()
    curve = curves(record, folder)
    last = max(curve, default=0)
    with SummaryWriter(str(target), write_to_disk=True) as writer:
        for step, values in curve.items():
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for name, scalar in summary(record).items():
            if isinstance(scalar, int | float):
                writer.add_scalar(f"result/{name}", scalar, last)
        writer.add_text("config", f"```json\n{to_json(config)}\n```", last)


_FILES, _FOLDERS = ("report.html", "report.md", "fairness.json"), ("plots", "tables")


def send_wandb(config: RunConfig, record: Record) -> None:
    """One run of the tracker for one of ours, grouped by sweep."""
    folder = run_folder(config)
    told = to_mapping(record.config) | {"comparison_key": record.comparison_key}
    wandb, run = _open(config, folder, record.run_id, told)
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
