"""What a tracker is told of a finished run: one mapping of scalars, curves by step, and the predictions.

>>> curves(record, folder)[20]
{'train/loss': 2.71, ..., 'heldout/loss': 2.41}
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from bench.spec.record import Record


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
