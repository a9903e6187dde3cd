"""Which learning rate is best, which to try next, when a trial is hopeless, and which arms ran untuned.

Pure functions over trials, tunings and records. The loss against the rate is taken to have one valley: the search
walks from the method's own rate towards lower loss until the best rate has a worse neighbour on both sides.

    >>> next_rate(TuneConfig(), middle=5e-5, trials=[])
    5e-05
    >>> best_rates(rates.tunings)
    {'full': 5e-05, 'lora': 0.0005}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bench.analysis.order import is_base, is_control
from bench.config import TrialConfig
from bench.identity import tuning_key
from bench.record import Edge, HeldoutPoint, Record, Trial, TuneConfig, Tuning

TUNED = "tuned: "  # how `RunConfig.learning_rate_source` begins for a rate from a file


def best(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the lowest loss at its end; of equal ones the lower rate. Stopped trials cannot win."""
    ended = [trial for trial in trials if trial.stopped_early is None and trial.loss is not None]
    return min(ended, key=lambda trial: (trial.loss, trial.learning_rate), default=None)


def edge(trials: Sequence[Trial]) -> Edge | None:
    """The end of the tried rates at which the best one is; with a single rate, "high". None: inside.

    Stopped and diverged trials count as tried. When no trial ended well, every rate is taken to be too high.
    """
    winner = best(trials)
    tried = [trial.learning_rate for trial in trials]
    if winner is None or (winner.learning_rate == min(tried) and len(tried) > 1):
        return "low"
    return "high" if winner.learning_rate == max(tried) else None


def next_rate(settings: TuneConfig, middle: float, trials: Sequence[Trial]) -> float | None:
    """The rate to try next: first the grid from its middle outwards, then beyond the edge that the best is at.

    Returns:
        None when the search is over: the best rate is inside, or `max_points` were tried.
    """
    tried = {trial.learning_rate for trial in trials}
    for rate in settings.rates or _grid(settings, middle):
        if rate not in tried:
            return rate
    if settings.rates is not None or len(tried) >= settings.max_points:
        return None
    beyond = {"low": min(tried) / settings.factor, "high": max(tried) * settings.factor, None: math.inf}
    rate = _rounded(beyond[edge(trials)])
    return rate if 0 < rate <= 1 else None


def _grid(settings: TuneConfig, middle: float) -> list[float]:
    """Log-spaced rates, the middle first, then its neighbours, the higher one before the lower."""
    powers = sorted(range(-((settings.points - 1) // 2), settings.points // 2 + 1), key=lambda p: (abs(p), -p))
    rates = [_rounded(middle * settings.factor**power) if power else middle for power in powers]
    return [rate for rate in rates if 0 < rate <= 1]


def _rounded(rate: float) -> float:
    """Three significant digits: 1.25e-4, not 0.00012500000000000003."""
    return float(f"{rate:.3g}")


def hopeless(trial: TrialConfig, points: Sequence[HeldoutPoint]) -> str | None:
    """Why a trial should end now, or None. `points`: its held-out losses so far, from step 0.

    Hopeless is a loss that is not finite, or that fell by less than `trial.hopeless_below` of what the best trial's
    had fallen by at the same step.
    """
    start, now = points[0], points[-1]
    if now.loss is None or start.loss is None:
        return f"held-out loss not finite at step {now.step}"
    losses = dict(trial.best_losses)
    rival_start, rival_now = losses.get(start.step), losses.get(now.step)
    if rival_start is None or rival_now is None:
        return None
    fall, rival_fall = start.loss - now.loss, rival_start - rival_now
    if rival_fall <= 0 or fall >= trial.hopeless_below * rival_fall:
        return None
    return (
        f"held-out loss at step {now.step} fell by {fall:.3f}, less than {trial.hopeless_below:g} of the "
        f"{rival_fall:.3f} by which the best trial's had fallen"
    )


def best_rates(tunings: Iterable[Tuning]) -> dict[str, float]:
    """Method -> its chosen rate; the last tuning of a method counts. Failed tunings are left out."""
    return {t.method: t.learning_rate for t in tunings if t.learning_rate is not None}


def tuning_of(record: Record, tunings: Iterable[Tuning]) -> Tuning | None:
    """The search that holds for a run: that of its method, model, task and budget."""
    if is_base(record):
        return None
    key = tuning_key(record.config)
    return next((tuning for tuning in tunings if tuning.key == key), None)


def is_tuned(record: Record, tunings: Iterable[Tuning]) -> bool:
    """Whether a trained run used the rate that a search chose, by its own word or by the searches given."""
    if record.config.learning_rate_source.startswith(TUNED):
        return True
    tuning = tuning_of(record, tunings)
    rate = record.config.method.learning_rate
    return tuning is not None and rate is not None and rate == tuning.learning_rate


def warnings(arms: Mapping[str, Sequence[Record]], tunings: Sequence[Tuning]) -> list[str]:
    """What a reader must know about the learning rates of the arms (name -> its runs), a sentence each."""
    trained = {arm: runs for arm, runs in arms.items() if any(run.train for run in runs) and not is_control(runs[0])}
    untuned = [arm for arm, runs in trained.items() if not all(is_tuned(run, tunings) for run in runs)]
    tuned = [arm for arm in trained if arm not in untuned]
    sentences = []
    if untuned and tuned:
        sentences.append(
            f"Only {_listed(tuned)} ran at a learning rate that was searched for; {_listed(untuned)} ran untuned, at "
            "the rate in the configuration: the comparison may favour what was tuned."
        )
    elif untuned:
        sentences.append(
            f"Learning rates untuned: {_listed(untuned)} ran at the rate in the configuration. make tune finds each "
            "method's own on the validation split."
        )
    for arm in tuned:
        tuning = tuning_of(trained[arm][0], tunings)
        sentences += [f"{arm}: {remark}" for remark in remarks(tuning, trained[arm])] if tuning else []
    return sentences


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


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
