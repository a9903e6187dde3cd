"""Hands a run to litgpt, which lives in a Python environment of its own, and reads what its child measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.material import Material

ROOT = Path(__file__).resolve().parents[2]
NO_QLORA = "litgpt refuses to combine quantization with mixed precision, and quantizes on CUDA only"


def train_litgpt(material: Material, python: str | None, output: Path) -> dict[str, Any]:
    """Returns what the child measured.

    Raises:
        RuntimeError: there is no such environment, litgpt has no such method, or it failed.
    """
    if python is None:
        raise RuntimeError("litgpt needs an environment of its own: give --litgpt-python PATH")
    if material.quantization is not None:
        raise RuntimeError(NO_QLORA)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    config = material.config
    request = {
        "model": material.model,
        "train": material.train,
        "validation": material.validation,
        "pad_id": material.pad_id,
        "adapter": None if material.adapter is None else [material.adapter.rank, material.adapter.alpha],
        "learning_rate": config.method.learning_rate,
        "steps": config.train.max_steps,
        "warmup_steps": material.warmup_steps,
        "batch_size": config.train.batch_size,
        "micro_batch": config.train.micro_batch,
        "seed": config.seed,
    }
    (output / "request.json").write_text(json.dumps(request))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "benchmarks.peers.litgpt_child", str(output.resolve())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"litgpt failed: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads((output / "measured.json").read_text())
    return measured
