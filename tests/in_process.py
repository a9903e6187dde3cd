"""Stages without a child of their own: starting one takes longer than a stage of the tiny model.

>>> monkeypatch.setattr(execute, "run_stage", in_process)
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.outcome import Status
from bench.record import from_json, to_json
from bench.sweep.child import Outcome
from bench.worker.main import STAGES, Context, Progress


def in_process(folder: Path, stage: str, timeout_seconds: float, watch: Any = None) -> Outcome:
    """Takes the place of `launch.run_stage`; what goes wrong is raised."""
    module, function = STAGES[stage]
    run = getattr(importlib.import_module(f"bench.worker.{module}"), function)
    config = from_json(RunConfig, (folder / "plan.json").read_bytes())
    result = run(Context(folder, config, Progress(folder, stage)))
    (folder / f"{stage}.json").write_text(json.dumps(result) if isinstance(result, dict) else to_json(result))
    return Outcome(Status.OK, 1.0)
