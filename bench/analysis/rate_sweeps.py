"""Arms that differ in the learning rate alone: which is best, and how well the rates tried tell it.

The best rate is the one of the lowest validation loss after training, mean over seeds; the test split is not asked.
A run whose loss is not finite counts as the worst.

    >>> best_of_rates(arms)
    {'lora (learning_rate=0.0005)': [...]}
    >>> best_cell({1e-4: 2.9, 3e-4: 2.7, 1e-3: 2.8})   # the rate, and where the optimum may lie
    (0.0003, 0.00017, 0.00055)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from bench.analysis.rates import tuning_of
from bench.identity import canonical_json
from bench.record import Record, Tuning

Runs = Sequence[Record]


def best_of_rates(arms: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """The best arm of each set that differs in the rate alone; the first one where no validation loss is known."""
    chosen = [min(names, key=lambda name: _order(arms[name])) for names in _alike(arms).values()]
    return {name: arms[name] for name in chosen}


def tried(arms: Mapping[str, list[Record]], tunings: Iterable[Tuning]) -> list[dict[float, float]]:
    """{learning rate: validation loss} of every search: those of `make tune`, and arms that differ in the rate alone.

    A trial that was stopped early or diverged counts as the worst.
    """
    runs = [record for records in arms.values() for record in records]
    searches = {tuning.key: tuning for record in runs if (tuning := tuning_of(record, tunings)) is not None}
    found = [
        {t.learning_rate: math.inf if t.loss is None or t.stopped_early else t.loss for t in tuning.trials}
        for tuning in searches.values()
    ]
    for names in _alike(arms).values():
        losses = {_rate(arms[name]): validation_loss(arms[name]) for name in names}
        found.append({rate: loss for rate, loss in sorted(losses.items()) if loss is not None})
    return [losses for losses in found if len(losses) > 1]


def best_cell(losses: Mapping[float, float]) -> tuple[float, float, float]:
    """(best rate, low, high): the optimum is nearer to the best rate than to its neighbours, on the log scale.

    At an edge of the grid that side is open: 0 or infinite.

    Args:
        losses: learning rate -> validation loss; at least one.
    """
    rates = sorted(losses)
    place = rates.index(min(rates, key=lambda rate: losses[rate]))
    low = math.sqrt(rates[place - 1] * rates[place]) if place else 0.0
    high = math.sqrt(rates[place] * rates[place + 1]) if place + 1 < len(rates) else math.inf
    return rates[place], low, high


def validation_loss(runs: Runs) -> float | None:
    """Mean over seeds, nats per token; infinite where a run's was not finite, None where a run has none."""
    points = [run.train.heldout for run in runs if run.train]
    if not points or len(points) < len(runs) or not all(points):
        return None
    losses = [max(run, key=lambda point: point.step).loss for run in points]
    return sum(math.inf if loss is None else loss for loss in losses) / len(losses)


def _alike(arms: Mapping[str, list[Record]]) -> dict[str, list[str]]:
    """Arms by all that they are but for the rate."""
    alike: dict[str, list[str]] = {}
    for name, runs in arms.items():
        method = {k: v for k, v in asdict(runs[0].config.method).items() if k != "learning_rate"}
        micro_batch = runs[0].config.train.micro_batch
        key = canonical_json([method, micro_batch, runs[0].comparison_key])
        alike.setdefault(key, []).append(name)
    return alike


def _order(runs: Runs) -> float:
    loss = validation_loss(runs)
    return math.inf if loss is None else loss


def _rate(runs: Runs) -> float:
    return runs[0].config.method.learning_rate or math.nan
