"""Values of runs by example: shared where runs were tested alike, lined up where they were not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.analysis.bootstrap import Resampler
from bench.analysis.measures import paired_difference
from bench.analysis.values import by_run, different_references, references_of, shared_examples


@pytest.fixture
def samples() -> pd.DataFrame:
    """Three runs of three examples; the third run was tested in another order and against another answer."""
    ids = [*"abc", *"abc", *"cba"]
    return pd.DataFrame(
        {
            "run_id": np.repeat(["base", "lora", "full"], 3),
            "example_id": ids,
            "score": [0.0, 0.5, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 0.0],
            "reference": [*"xyz", *"xyz", "z", "other", "x"],
        }
    )


def test_runs_tested_alike_share_their_examples(samples: pd.DataFrame) -> None:
    table = by_run(samples, "example_id", samples["score"], None)
    assert table["base"].examples is table["lora"].examples
    assert list(table["full"].examples) == ["c", "b", "a"]


def test_another_order_is_lined_up_by_id(samples: pd.DataFrame) -> None:
    table = by_run(samples, "example_id", samples["score"], None)
    found = paired_difference(table, [("full", "base")], np.random.default_rng(0))
    assert not isinstance(found, str)
    assert found.shares.tolist() == pytest.approx([0.0, 0.5 / 3, 0.0])


def test_missing_values_and_weights_are_not_known(samples: pd.DataFrame) -> None:
    weight = samples["score"].mask(samples["score"] == 0)
    table = by_run(samples, "example_id", samples["score"], weight)
    assert table["base"].known.tolist() == [False, True, True]
    assert list(shared_examples([table["base"], table["full"]])) == ["a", "b", "c"]


def test_other_reference_answers_are_counted_whatever_the_order(samples: pd.DataFrame) -> None:
    answers = references_of(samples)
    assert different_references(answers["base"], answers["lora"]) == 0
    assert different_references(answers["base"], answers["full"]) == 1
    assert different_references(answers["base"], answers.get("of no samples")) == 0


def test_kept_draws_are_those_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.analysis.bootstrap._CHUNK_CELLS", 300)  # three chunks of draws
    values = np.arange(10.0)
    resampler = Resampler(np.random.default_rng(0), draws=90)
    first, again = (resampler.ratios(values, np.ones(10)) for _ in range(2))
    assert first.tolist() == again.tolist()
    monkeypatch.setattr("bench.analysis.bootstrap._KEPT_CELLS", 0)  # no room: drawn anew
    anew = Resampler(np.random.default_rng(0), draws=90)
    assert anew.ratios(values, np.ones(10)).tolist() == first.tolist()
    assert anew.ratios(values, np.ones(10)).tolist() != first.tolist()
