"""Where task examples come from: one module a source, all with the same shape.

docstrings   installed Python packages; the embedded default
files        the user's .jsonl, .json, .csv or .parquet
hub          data sets of the Hugging Face hub

>>> loaded = load(config.task)
>>> {name: len(examples) for name, examples in loaded.splits.items()}
{'train': 15000, 'validation': 2000, 'test': 4000}
"""

from __future__ import annotations

from bench.spec.config import TaskConfig
from bench.worker.sources import docstrings, files, hub
from bench.worker.sources.example import SPLITS, Example, Loaded

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
    package), they are prepared anew. Hub data are named by `hub_revision` alone.
    """
    if task.source == "docstrings":
        return docstrings.versions()
    return files.checksums(task) if task.source == "files" else {}
