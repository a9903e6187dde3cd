"""Data sets of the Hugging Face hub -> examples.

Data sets are only read, never run: the `datasets` library no longer executes a data set's own script, and
nothing here asks it to. A split that the hub does not have is cut from the training split, as for files. The
test split is taken as it is, so that scores stay comparable with published ones; what the training split shares
with it, or repeats, is dropped from the training split and counted.

    >>> check_columns_without_download(task)
    ["task.target: {sumary} is not a column (did you mean 'summary'?); allowed: dialogue, id, summary, topic"]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.config import TaskConfig, suggest
from bench.mistakes import ConfigurationError, refuse
from bench.worker.sources import Example, Loaded, divided
from bench.worker.sources.layouts import Row, column_problems, described, fill, with_labels


def load(task: TaskConfig) -> Loaded:
    """Download (or take from the local cache) and fill in the templates.

    Raises:
        ConfigurationError: an unreachable hub, an unknown data set, configuration, split or column.
    """
    given: dict[str, list[Example]] = {}
    unreadable: dict[str, int] = {}
    layout = ""
    for split, name in _wanted_splits(task).items():
        rows, own = _rows(split, name, task)
        if split == "train":
            own = with_labels(rows, own)
            if task.label_column is None:  # else each split names its own classes
                task = replace(task, labels=own.labels)
        refuse(_column_problems(split, list(rows[0].columns) if rows else [], own))
        examples, unusable = fill(rows, own)
        if not examples:
            raise ConfigurationError([f"{own.hub_dataset}, split {name!r}: no usable example: {unusable[:1]}"])
        if unusable:  # nobody can mend a published data set: left out and counted
            unreadable[f"{split}: a column is empty or not a text"] = len(unusable)
        given[split] = examples
        if split == "train" and (own.prompt is None or own.target is None):
            layout = f" ({described(rows, examples)})"
    # Converted data sets may repeat their training split as its own subsets (GEM/viggo does).
    splits, dropped = divided(given)
    where = dict.fromkeys(f"{_for_split(s, task).hub_dataset} ({n})" for s, n in _wanted_splits(task).items())
    return Loaded(splits, unreadable | dropped, f"hub: {', '.join(where)}{layout}")


def check_columns_without_download(task: TaskConfig) -> list[str]:
    """Problems of the data set's name, splits and columns, from its description alone.

    A data set that does not describe its columns passes: `load` checks them again. An unreachable hub is a
    problem too, unless the data are in the local cache.
    """
    import datasets

    if task.labels is None and "{labels}" in f"{task.prompt}{task.train_prompt}":
        task = replace(task, labels=["of the training split"])  # which `load` puts in their place
    problems: list[str] = []
    known: dict[str, Any] = {}
    for split, name in _wanted_splits(task).items():
        own = _for_split(split, task)
        dataset = str(own.hub_dataset)
        try:
            if dataset not in known:
                described = datasets.load_dataset_builder(dataset, name=own.hub_config, revision=own.hub_revision)
                known[dataset] = described.info
        except Exception as error:
            problems.append(_unreachable(dataset, split, error))
            if isinstance(error, ConnectionError):
                break  # asking again would wait through the same retries
            continue
        info = known[dataset]
        if info.splits and name not in info.splits:
            problems.append(f"task.{split}_split: {dataset} has no {name!r}{suggest(name, list(info.splits))}")
        if info.features:
            problems += _column_problems(split, list(info.features), task)
    return list(dict.fromkeys(problems))


def _rows(split: str, name: str, task: TaskConfig) -> tuple[list[Row], TaskConfig]:
    """The split's records, and `_for_split` with the label names that the data set declares itself."""
    import datasets

    own = _for_split(split, task)
    dataset = str(own.hub_dataset)
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(dataset, split=name, name=own.hub_config, revision=own.hub_revision)
    except Exception as error:
        # The library raises a dozen kinds for one cause: the name, the network, or the cache.
        raise ConfigurationError([_unreachable(dataset, split, error)]) from error
    names = getattr(data.features.get(task.label_column or ""), "names", None)
    if names and not task.labels:
        own = replace(own, labels=list(names))
    return [Row(f"{name}:{number}", record) for number, record in enumerate(data)], own


def _column_problems(split: str, columns: list[str], task: TaskConfig) -> list[str]:
    prefix = "train_" if split == "train" and task.train_hub_dataset else ""
    own = _for_split(split, task)
    prompt_key = f"task.{prefix if task.train_prompt else ''}prompt"
    target_key = f"task.{prefix if task.train_target else ''}target"
    problems = column_problems(columns, own, prompt_key, target_key)
    return [f"{problem} (in {own.hub_dataset})" for problem in problems]


def _wanted_splits(task: TaskConfig) -> dict[str, str]:
    named = {"train": task.train_split, "validation": task.validation_split, "test": task.test_split}
    return {split: name for split, name in named.items() if name}


def _for_split(split: str, task: TaskConfig) -> TaskConfig:
    """The task with the data set and templates of a split; another training set has no configuration or revision."""
    if split != "train" or task.train_hub_dataset is None:
        return task
    prompt, target = task.train_prompt or task.prompt, task.train_target or task.target
    name = task.train_hub_dataset
    return replace(task, hub_dataset=name, hub_config=None, hub_revision=None, prompt=prompt, target=target)


def _unreachable(dataset: str, split: str, error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, ConnectionError | TimeoutError):
        return (
            f"task.hub_dataset: the hub cannot be reached for {dataset!r}, and the data are not in the local cache "
            f"({first_line}); connect, download them on a connected machine into the same cache (HF_HOME), or "
            "export them to files and choose task=jsonl. Without any network: task=docstrings"
        )
    return (
        f"task.hub_dataset: {dataset!r} ({split}) cannot be loaded: {type(error).__name__}: {first_line}; check the "
        "name, task.hub_config, task.hub_revision and the split; data sets that need their own script are not run"
    )
