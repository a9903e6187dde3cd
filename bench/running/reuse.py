"""The base model's results from another sweep, instead of measuring them again.

What an untrained model scores follows from its configuration, the software and the machine. A finished run with the
same run id in a neighbouring sweep (`results/<other>/<run_id>`) is taken over when all of these are equal; its record
says where it comes from. Trained runs are never taken over: their speed and memory are what a sweep is asked for.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.running import store
from bench.running.provenance import provenance
from bench.spec.config import RunConfig
from bench.spec.failure import Status
from bench.spec.layout import run_folder
from bench.spec.record import Record

_MUST_BE_EQUAL = ("python", "packages", "git_commit", "platform", "processor", "cores", "memory_bytes")


def take_over(config: RunConfig, folder: Path) -> Record | None:
    """Copy an equal run's files into `folder` and return its record, yet to be written; None where there is none."""
    if config.method.trains != "nothing":
        return None
    here = provenance()
    for other in sorted(Path(config.paths.results).glob(f"*/{run_folder(config).name}")):
        record = store.read_record(other) if other != folder else None
        if record is None or record.status is not Status.OK or not _same(record.provenance, here):
            continue
        for file in other.iterdir():
            if file.suffix in (".gz", ".json", ".jsonl") and file.name not in ("record.json", "plan.json"):
                shutil.copy2(file, folder / file.name)
        return replace(record, sweep=config.sweep, reused_from=record.reused_from or record.sweep)
    return None


def _same(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    known = ours["git_commit"] is not None and not (
        theirs.get("git_dirty") or ours["git_dirty"]
    )  # else another program?
    return known and all(theirs.get(name) == ours[name] for name in _MUST_BE_EQUAL)
