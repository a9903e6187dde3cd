"""A finished record, sent to Weights & Biases.

The record in its folder is the result; tracking is a copy of it. A tracker that fails is reported and changes
nothing. Nothing is sent unless `tracking=wandb` is chosen, and nothing leaves the machine in offline mode.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench.spec.config import RunConfig
from bench.spec.layout import run_folder
from bench.spec.record import Record


def track(config: RunConfig, record: Record) -> str | None:
    """Send a record if the config asks for it. Returns what went wrong, or None."""
    if config.tracking.kind == "none":
        return None
    try:
        _to_wandb(config, record)
    except Exception as error:  # a tracker's own trouble must never cost a finished run
        return f"tracking: {type(error).__name__}: {error}; the record in {run_folder(config)} is complete without it"
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


def _to_wandb(config: RunConfig, record: Record) -> None:
    folder = run_folder(config)
    own = Path(config.paths.cache).resolve() / "wandb"
    own.mkdir(parents=True, exist_ok=True)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):  # else it writes to the home folder
        os.environ.setdefault(name, str(own))
    import wandb  # a second to import, and only here

    run = wandb.init(
        project=config.tracking.project,
        mode=config.tracking.mode,
        name=record.run_id,
        group=record.sweep,
        dir=str(folder),
        config=record.config | {"comparison_key": record.comparison_key},
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
    )
    steps = folder / "steps.jsonl"
    for line in steps.read_text().splitlines() if record.train and steps.exists() else []:
        step = json.loads(line)
        run.log({f"train/{k}": v for k, v in step.items() if k != "step"}, step=step["step"])
    run.summary.update(summary(record))
    run.finish()
