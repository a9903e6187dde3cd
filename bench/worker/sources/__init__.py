"""Where task examples come from: one module a source, all with the same shape.

docstrings   installed Python packages; the embedded default
files        the user's .jsonl, .json, .csv or .parquet
hub          data sets of the Hugging Face hub

>>> loaded = load(config.task)
>>> {name: len(examples) for name, examples in loaded.splits.items()}
{'train': 15000, 'validation': 2000, 'test': 4000}
"""

from __future__ import annotations

from pathlib import Path

from bench.config import TaskConfig
from bench.worker.sources import docstrings, files, hub
from bench.worker.sources.example import SPLITS, Example, Loaded, content_hash

__all__ = ["SPLITS", "Example", "Loaded", "load", "stamp"]


def load(task: TaskConfig) -> Loaded:
    """Every example of the task, by split, templates filled in.

    Raises:
        ConfigurationError: with every problem of the files, columns and templates.
    """
    return {"docstrings": docstrings.load, "files": files.load, "hub": hub.load}[task.source](task)


def stamp(task: TaskConfig) -> dict[str, str]:
    """What of the outside world decides the examples, cheap to ask for.

    Prepared data are kept by the task's settings; when the stamp has changed since (an edited file, an upgraded
    package, a changed rule in this folder), they are prepared anew. Hub data are named by `hub_revision` alone.
    """
    outside = {"docstrings": docstrings.versions, "files": lambda: files.checksums(task), "hub": dict}[task.source]()
    return outside | {"rules": _rules_sha256()}


def _rules_sha256() -> str:
    """Of the code that reads, filters and tokenizes: another rule makes other data."""
    folder = Path(__file__).parent
    code = [*sorted(folder.glob("*.py")), folder.parent / "data.py"]
    return content_hash(*(path.read_text() for path in code))
