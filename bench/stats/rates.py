"""Learning rates: which is best, which to try next, which arms ran untuned, and how well the optimum is known.

The loss against the rate is taken to have one valley. A search walks from the method's own rate towards lower loss
until the best rate has a worse neighbour on both sides, and then tries rates between them. The best rate is that of
the parabola through the losses (`stats.optimum`), else the one of the lowest validation loss; the test split is not
asked. A run that diverged was tried, and cannot win.

    >>> next_rate(TuneConfig(), middle=5e-5, trials=[])
    5e-05
    >>> optimum_cell({1e-4: 2.9, 3e-4: 2.7, 1e-3: 2.8})  # the best rate, and where the optimum may lie
    (0.0003, 0.00017, 0.00055)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from bench.compose import Edge, Rate, Trial, Tuning
from bench.config import PositiveInt
from bench.identity import canonical_json, tuning_key
from bench.record import Record

if TYPE_CHECKING:  # `tune` searches without pandas and scipy
    from bench.stats.frames import Group

TUNED = "tuned: "  # how `RunConfig.learning_rate_source` begins for a rate from a file
OPEN_SIDE = 10.0  # beyond the lowest or highest rate tried, the optimum is looked for within this factor


# --- The search ---


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TuneConfig:
    """How rates are searched; the same for every method. The settings are explained in `conf/tune.yaml`."""

    factor: Annotated[float, Field(gt=1)] = 2.5
    max_points: PositiveInt = 5
    rates: Annotated[list[Rate], Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1000
    max_steps: PositiveInt | None = None
    heldout_points: PositiveInt = 2


def best(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the lowest loss; of equal ones the lower rate. None where no loss is finite."""
    ended = [trial for trial in trials if trial.loss is not None]
    return min(ended, key=lambda trial: (trial.loss, trial.learning_rate), default=None)


def edge(trials: Sequence[Trial]) -> Edge | None:
    """The end of the tried rates at which the best one is; of a single rate "high". None: inside.

    When no trial ended well, every rate is taken to be too high.
    """
    winner = best(trials)
    tried = [trial.learning_rate for trial in trials]
    if winner is None or (winner.learning_rate == min(tried) and len(tried) > 1):
        return "low"
    return "high" if winner.learning_rate == max(tried) else None


def next_rate(settings: TuneConfig, middle: float, trials: Sequence[Trial]) -> float | None:
    """The rate to try next: first the method's own, then beyond the edge that the best is at, then, once the best is
    inside, between it and its neighbours: every method gets as many trials. Or the rates that are given, in turn.

    Returns:
        None when the search is over: `max_points` were tried, or there is no rate beyond the edge.
    """
    tried = sorted({trial.learning_rate for trial in trials})
    for rate in settings.rates or [middle]:
        if rate not in tried:
            return rate
    if settings.rates is not None or len(tried) >= settings.max_points:
        return None
    end, winner = edge(trials), best(trials)
    if end is None and winner is not None:
        place = tried.index(winner.learning_rate)
        wider = max((place + 1, place), key=lambda right: tried[right] / tried[right - 1])  # of the two gaps beside it
        rate = _rounded(math.sqrt(tried[wider - 1] * tried[wider]))
        return rate if rate not in tried else None
    rate = _rounded(min(tried) / settings.factor if end == "low" else max(tried) * settings.factor)
    return rate if 0 < rate <= 1 else None


def _rounded(rate: float) -> float:
    """Three significant digits: 1.25e-4, not 0.00012500000000000003."""
    return float(f"{rate:.3g}")


# --- What a report says of the rates ---


def tuning_of(record: Record, tunings: Iterable[Tuning]) -> Tuning | None:
    """The search that holds for a run: that of its method, model, task and budget."""
    key = None if record.config.untrained else tuning_key(record.config)
    return next((tuning for tuning in tunings if tuning.key == key), None)


def tunings_of(group: Group) -> dict[str, Tuning]:
    """Arm -> the search that holds for its runs; arms without one are left out."""
    found = {arm: tuning_of(runs[0], group.sweep.tunings) for arm, runs in group.by_arm.items()}
    return {arm: tuning for arm, tuning in found.items() if tuning}


def is_tuned(record: Record, tunings: Iterable[Tuning]) -> bool:
    """Whether a trained run used the rate that a search chose, by its own word or by the searches given."""
    if record.config.learning_rate_source.startswith(TUNED):
        return True
    tuning, rate = tuning_of(record, tunings), record.config.method.learning_rate
    return tuning is not None and rate is not None and rate == tuning.learning_rate


def warnings(group: Group) -> list[str]:
    """What a reader must know about the learning rates of the arms, a sentence each."""
    untuned, tuned = list[str](), list[str]()
    for arm, runs in group.by_arm.items():
        if any(run.train for run in runs) and not runs[0].config.method.control:
            (tuned if all(is_tuned(run, group.sweep.tunings) for run in runs) else untuned).append(arm)
    sentences = []
    if untuned and tuned:
        sentences.append(
            f"Only {listed(tuned)} ran at a learning rate that was searched for; {listed(untuned)} ran untuned, at "
            "the rate in the configuration: the comparison may favour what was tuned."
        )
    elif untuned:
        sentences.append(
            f"Learning rates untuned: {listed(untuned)} ran at the rate in the configuration. "
            "python -m bench tune finds each method's own on the validation split."
        )
    searches = {arm: tuning for arm, tuning in tunings_of(group).items() if arm in tuned}
    return sentences + [f"{arm}: {text}" for arm in searches for text in remarks(searches[arm], group.by_arm[arm])]


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def remarks(tuning: Tuning, runs: Sequence[Record] = ()) -> list[str]:
    """What limits a search, a sentence each. `runs`: those that used its rate."""
    found = []
    if tuning.learning_rate is None:
        found.append("no rate that was tried ended with a finite loss.")
    elif tuning.at_edge:
        end, other = {"low": ("lowest", "a lower"), "high": ("highest", "a higher")}[tuning.at_edge]
        if len(tuning.trials) == 1:
            end, other = "only one", "another"
        found.append(
            f"the best learning rate, {tuning.learning_rate:g}, is the {end} that was tried; {other} one may be better."
        )
    if tuning.max_steps is not None:
        found.append(f"its learning rate was chosen on trials of at most {tuning.max_steps} steps.")
    fingerprints = {run.data.fingerprint for run in runs if run.data}
    if tuning.data_fingerprint is not None and fingerprints - {tuning.data_fingerprint}:
        found.append("its learning rate was chosen on other data than it was trained on.")
    return found


# --- Arms that differ in the rate alone ---

Arms = Mapping[str, list[Record]]


def validation_loss(runs: Sequence[Record]) -> float:
    """After training, mean over seeds, nats a token; infinite where a run's is not finite or unknown."""
    points = [run.train.heldout if run.train else [] for run in runs]
    losses = [max(of_run, key=lambda point: point.step).loss if of_run else None for of_run in points]
    return sum(math.inf if loss is None else loss for loss in losses) / len(losses)


def best_of_rates(arms: Arms) -> dict[str, list[Record]]:
    """The best arm of each set that differs in the rate alone; the first one where no validation loss is known."""
    chosen = [min(names, key=lambda name: validation_loss(arms[name])) for names in _alike(arms)]
    return {name: arms[name] for name in chosen}


def tried(arms: Arms, tunings: Iterable[Tuning]) -> list[dict[float, float]]:
    """{learning rate: validation loss} of every search: those of `tune`, and arms that differ in the rate alone.

    A trial that diverged counts as the worst.
    """
    runs = [record for records in arms.values() for record in records]
    known = {tuning.key: tuning for record in runs if (tuning := tuning_of(record, tunings)) is not None}
    found = [
        {t.learning_rate: math.inf if t.loss is None else t.loss for t in tuning.trials} for tuning in known.values()
    ]
    for names in _alike(arms):
        rates = {arms[name][0].config.method.learning_rate or 0.0: validation_loss(arms[name]) for name in names}
        found.append(dict(sorted(rates.items())))
    return [losses for losses in found if len(losses) > 1]


def optimum_cell(losses: Mapping[float, float]) -> tuple[float, float, float]:
    """(best rate, low, high): the optimum is nearer to the best rate than to its neighbours, on the log scale.

    At an edge of the rates tried that side is open, and reaches `OPEN_SIDE` times far.

    Args:
        losses: learning rate -> validation loss; at least one.
    """
    rates = sorted(losses)
    best_rate = min(rates, key=lambda rate: losses[rate])
    place, ends = rates.index(best_rate), [rates[0] / OPEN_SIDE**2, *rates, rates[-1] * OPEN_SIDE**2]
    return best_rate, math.sqrt(ends[place] * best_rate), math.sqrt(best_rate * ends[place + 2])


def _alike(arms: Arms) -> list[list[str]]:
    """Names of arms, by all that they are but for the rate."""
    alike: dict[str, list[str]] = {}
    for name, runs in arms.items():
        config = runs[0].config
        method = {k: str(v) for k, v in vars(config.method).items() if k != "learning_rate"}
        alike.setdefault(canonical_json([method, config.train.micro_batch, runs[0].comparison_key]), []).append(name)
    return list(alike.values())
