"""One value per example of a run, and its reference answers: arrays that runs tested alike can share the examples of.

>>> table = by_run(samples, "example_id", samples["score_rougeL"], None)
>>> table["lora-...-s0-1f2e"].value
array([0.31, ...])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Values:
    """Of one run. Every array has the shape (examples,).

    Attributes:
        examples: their ids; one object for all runs of a table that have the same in the same order.
        value: NaN where the run has none.
        weight: of the example in the mean.
    """

    examples: pd.Index
    value: Floats
    weight: Floats

    @classmethod
    def plain(cls, value: Sequence[float]) -> Values:
        """Examples numbered in order, each of weight 1."""
        return cls(pd.RangeIndex(len(value)), np.asarray(value, dtype=float), np.ones(len(value)))

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where there is a value and a weight."""
        return ~(np.isnan(self.value) | np.isnan(self.weight))

    def of(self, examples: pd.Index) -> Values:
        """In this order; all of them must be there."""
        if self.examples is examples or self.examples.equals(examples):
            return self
        places = self.examples.get_indexer(examples)
        return Values(examples, self.value[places], self.weight[places])


@dataclass(frozen=True, eq=False)
class Answers:
    """The reference answers that one run was scored against, numbered: equal answers have equal numbers."""

    examples: pd.Index
    answer: NDArray[np.intp]


References = Mapping[str, Answers]  # by run_id


def by_run(rows: pd.DataFrame, named: str, value: pd.Series, weight: pd.Series | None) -> dict[str, Values]:
    """run_id -> its values, examples named by the column `named`; without weights all count alike."""
    values = value.to_numpy(dtype=float, na_value=np.nan)
    weights = np.ones(len(rows)) if weight is None else weight.to_numpy(dtype=float, na_value=np.nan)
    return {run: Values(ids, values[at], weights[at]) for run, (ids, at) in _parted(rows, named).items()}


def references_of(samples: pd.DataFrame) -> dict[str, Answers]:
    """run_id -> the reference answers of its samples."""
    answers, _ = pd.factorize(samples["reference"])
    return {run: Answers(ids, answers[at]) for run, (ids, at) in _parted(samples, "example_id").items()}


def different_references(left: Answers | None, right: Answers | None) -> int:
    """How many test examples of two runs carry another reference answer under the same id."""
    if left is None or right is None:
        return 0
    if left.examples is right.examples or left.examples.equals(right.examples):
        return int((left.answer != right.answer).sum())
    sides = (pd.Series(side.answer, side.examples, name=name) for name, side in (("left", left), ("right", right)))
    joined = pd.concat(sides, axis=1, join="inner")
    return int((joined["left"] != joined["right"]).sum())


def shared_examples(runs: Sequence[Values]) -> pd.Index:
    """Those that every run has."""
    shared = runs[0].examples
    for run in runs[1:]:
        if run.examples is not shared and not run.examples.equals(shared):
            shared = shared.intersection(run.examples)
    return shared


def _parted(rows: pd.DataFrame, named: str) -> dict[str, tuple[pd.Index, NDArray[np.intp]]]:
    """run_id -> the ids of its rows and their places; equal ids are one object."""
    codes, ids = pd.factorize(rows[named])
    known: dict[bytes, pd.Index] = {}
    parted = {}
    for run, indices in rows.groupby("run_id", sort=False).indices.items():
        places = np.asarray(indices)
        own = codes[places]
        key = own.tobytes()
        if key not in known:
            known[key] = pd.Index(ids[own])
        parted[str(run)] = known[key], places
    return parted
