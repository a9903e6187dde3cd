"""Configuration and tokenizer -> a folder of tokenized data, made once and read by every run that needs it.

The methods of a comparison read the same folder, so they cannot differ in their data. The folder appears by one
rename when it is complete: two processes that prepare the same data do not disturb each other.

    >>> summary = prepare(config, tokenizer, Path("cache/data") / identity.data_key(config))
    >>> load_prepared(folder).train[0]["answer_ids"]
    [13450, 260, 3215, 30, 2]

    folder/train/ validation/ test/   datasets.Dataset: example_id, prompt, reference, prompt_ids, answer_ids
    folder/summary.json               DataSummary, with what was dropped
    folder/stamp.json                 checksums or versions of the source, to notice that it changed
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import ConfigurationError, RunConfig
from bench.record import DataSummary, from_json, to_json
from bench.worker import sources
from bench.worker.sources.example import SPLITS, Example, Loaded, content_hash
from bench.worker.tokenizing import Record, fingerprint, tokenize_split

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Prepared:
    """Prepared data, memory-mapped. Columns: example_id, prompt, reference (texts), prompt_ids, answer_ids."""

    summary: DataSummary
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset


def prepare(config: RunConfig, tokenizer: Any, folder: Path) -> DataSummary:
    """Make the prepared data of a run, or return at once when they are there and their source is unchanged.

    Args:
        tokenizer: of the run's model, with its chat template set.
        folder: made here; name it by `identity.data_key(config)`.

    Raises:
        ConfigurationError: everything wrong with the source, the counts asked for and the lengths, before
            anything is written.
    """
    stamp = sources.stamp(config.task)
    present = _summary_if_current(folder, stamp)
    if present is not None:
        return present
    loaded = sources.load(config.task)
    problems = _count_problems(config, loaded)
    if problems:
        raise ConfigurationError(problems)
    dropped = Counter(loaded.dropped)
    splits: dict[str, list[Record]] = {}
    shots: list[Example] = []
    for split in SPLITS:
        splits[split], found = tokenize_split(config, tokenizer, split, loaded.splits[split], shots, dropped)
        problems += found
        if split == "train":
            shots = _shots(config, splits["train"])
    if problems:
        raise ConfigurationError(problems)
    summary = _summarize(splits, dropped, loaded.source)
    return _write(folder, splits, summary, stamp)


def load_prepared(folder: Path) -> Prepared:
    """Open what `prepare` wrote.

    Raises:
        FileNotFoundError: when the folder is not there.
    """
    import datasets

    summary = from_json(DataSummary, (folder / "summary.json").read_bytes())
    return Prepared(summary, *(datasets.load_from_disk(str(folder / split)) for split in SPLITS))


def _count_problems(config: RunConfig, loaded: Loaded) -> list[str]:
    problems = []
    for split in SPLITS:
        there, wanted = len(loaded.splits[split]), _wanted(config, split)
        if not there:
            problems.append(f"{split}: no examples in {loaded.source}")
        elif wanted is not None and wanted > there:
            problems.append(
                f"task.{split}_examples: {wanted} asked for, but {loaded.source} has {there} for {split} "
                f"({', '.join(f'{name} {len(loaded.splits[name])}' for name in SPLITS)}); lower it, or null for all"
            )
    return problems


def _wanted(config: RunConfig, split: str) -> int | None:
    count: int | None = getattr(config.task, f"{split}_examples")
    return count


def _shots(config: RunConfig, train: list[Record]) -> list[Example]:
    """The solved examples shown before each question: drawn from the training examples by the seed."""
    order = sorted(train, key=lambda r: content_hash(str(config.seed), r["example_id"]))
    return [Example(r["example_id"], r["prompt"], r["reference"], "") for r in order[: config.method.shots]]


def _summarize(splits: dict[str, list[Record]], dropped: Counter[str], source: str) -> DataSummary:
    lengths = [len(r["prompt_ids"]) + len(r["answer_ids"]) for split in SPLITS for r in splits[split]]
    return DataSummary(
        fingerprint=fingerprint(splits),
        train_examples=len(splits["train"]),
        validation_examples=len(splits["validation"]),
        test_examples=len(splits["test"]),
        dropped=dict(sorted(dropped.items())),
        tokens_per_example_mean=sum(lengths) / len(lengths),
        tokens_per_example_max=max(lengths),
        source=source,
    )


def _summary_if_current(folder: Path, stamp: dict[str, str]) -> DataSummary | None:
    """The summary of what is there; None when it is missing, torn or made from an older source."""
    try:
        if json.loads((folder / "stamp.json").read_text()) != stamp:
            return None
        there = load_prepared(folder)
    except (OSError, ValueError):  # no file; cut short: JSON's, pydantic's and Arrow's errors are ValueErrors
        return None
    rows, summary = [len(there.train), len(there.validation), len(there.test)], there.summary
    whole = rows == [summary.train_examples, summary.validation_examples, summary.test_examples]
    return summary if whole else None


def _write(folder: Path, splits: dict[str, list[Record]], summary: DataSummary, stamp: dict[str, str]) -> DataSummary:
    import datasets

    datasets.disable_progress_bars()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        built = Path(temporary, "built")
        for split in SPLITS:
            datasets.Dataset.from_list(list(splits[split])).save_to_disk(str(built / split))
        (built / "stamp.json").write_text(json.dumps(stamp))
        (built / "summary.json").write_text(to_json(summary))
        try:
            os.rename(built, folder)
        except OSError:
            present = _summary_if_current(folder, stamp)
            if present is not None:
                return present  # another process was first: its data are the same
            os.rename(folder, Path(temporary, "outdated"))  # or torn
            os.rename(built, folder)
    return summary
