"""The fitted best rate: a planted optimum, the interval's coverage, and refusals that say what to try."""

from __future__ import annotations

import numpy as np
import pytest

from bench.compose import Trial
from bench.stats.optimum import Optimum, fit, of_search, ratios, words

RATES = [4e-5 * 2.5 ** (place / 2) for place in range(5)]


def valley(best: float, noise: float = 0.0, seed: int = 0) -> dict[float, float]:
    scatter = np.random.default_rng(seed).normal(0, noise, len(RATES))
    return {rate: 2.4 + 0.1 * np.log(rate / best) ** 2 + e for rate, e in zip(RATES, scatter, strict=True)}


def fitted(losses: dict[float, float]) -> Optimum:
    found = fit(losses)
    assert isinstance(found, Optimum), found
    return found


def test_a_planted_optimum_is_recovered() -> None:
    found = fitted(valley(1.23e-4))
    assert found.learning_rate == pytest.approx(1.23e-4)
    assert (found.low, found.high) == pytest.approx((1.23e-4, 1.23e-4))
    assert found.loss == pytest.approx(2.4)
    assert found.optimism == pytest.approx(-0.1 * np.log(RATES[2] / 1.23e-4) ** 2)


def test_the_interval_covers_and_the_loss_is_not_too_low() -> None:
    found = [fitted(valley(1.1e-4, 0.004, seed)) for seed in range(400)]
    assert 0.92 <= np.mean([one.low <= 1.1e-4 <= one.high for one in found]) <= 0.98
    truth = np.mean([2.4 + 0.1 * np.log(one.learning_rate / 1.1e-4) ** 2 for one in found])
    assert np.mean([one.loss for one in found]) == pytest.approx(truth, abs=0.0005)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (dict.fromkeys(RATES[:3], 2.4), "3 rates ended with a finite loss, 4 are needed"),
        (valley(1e-5), "at an end of the rates, 4e-05: try lower ones"),
        (valley(1e-2), "try higher ones"),
        (dict(zip(RATES, (2.5, 2.41, 2.4, 2.49, 2.3), strict=True)) | {1e-3: 2.6}, "rates farther apart"),
    ],
)
def test_without_a_minimum_inside_it_is_refused(losses: dict[float, float], says: str) -> None:
    found = fit(losses)
    assert isinstance(found, str)
    assert says in found
    assert words(found) == f"No fitted optimum: {found}."


def test_methods_are_compared_by_the_ratio_of_their_best_rates() -> None:
    left, right = (
        of_search([Trial(r, loss, 4, 1.0, "") for r, loss in valley(b, 1e-4).items()]) for b in (1.4e-4, 7e-5)
    )
    (text,) = ratios({"lora": left, "full": right, "qlora": "refused"})
    assert text.startswith("Best rate of lora over that of full: 2 [")
