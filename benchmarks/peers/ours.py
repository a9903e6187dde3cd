"""Our training stage, unchanged: the same child that a sweep starts, with the meter listening."""

from __future__ import annotations

import json
from typing import Any

from transformers import TrainerCallback, trainer

from bench.config import RunConfig
from bench.identity import run_folder
from bench.record import to_json
from bench.worker.main import main as run_stage
from benchmarks.peers.meter import Meter


class Start(TrainerCallback):
    """Starts the meter before our own callback evaluates the untouched model."""

    def __init__(self, meter: Meter):
        self._meter = meter

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self._meter.start()


def train_ours(config: RunConfig, meter: Meter) -> dict[str, Any]:
    """Run the stage; what the meter cannot see comes from the stage's own files.

    Raises:
        RuntimeError: the stage failed.
    """
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(to_json(config))
    trainer.DEFAULT_CALLBACKS.append(Start(meter))  # the stage builds its trainer itself
    code = run_stage(folder, "train")
    if code:
        raise RuntimeError((folder / "error.json").read_text())
    record = json.loads((folder / "train.json").read_text())
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    (peak,) = [phase["peak_bytes"] for phase in record["memory"] if phase["phase"] == "train"]
    return {
        "losses": [step["loss"] for step in steps],
        "gradient_norms": [step["gradient_norm"] for step in steps],
        "step_tokens": [step["tokens"] for step in steps],
        "data_stream_sha256": record["data_stream_sha256"],
        "peak_bytes": peak,  # our instrument resets the mark within a step, so the meter's reading may miss it
        "compiled": record["environment"]["compiled"],
        "heldout_seconds": record["spans_seconds"]["heldout"],
        "own_tokens_per_second": record["train_tokens_per_second"],
    }
