"""The learning rates of a group: how they were searched, the loss against the rate, and what a reader must know.

>>> warnings_of(group)
['Learning rates untuned: full and lora ran at the rate in the configuration. ...']
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.rates import remarks, tuning_of, warnings
from bench.record import Record, Trial, Tuning
from bench.report import plots
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, number, table

HOW = (
    "Each rate was a training run of its own, judged by the loss on the validation split at its end; the test split "
    "was not read. Crosses ended early or diverged and could not be chosen; they are drawn at their last loss, or at "
    "the upper edge. Two rates whose losses differ by less than two seeds' would are equally good."
)
_STOPPED = "x"


def warnings_of(group: Group) -> list[str]:
    """Which arms ran untuned, at an edge of what was tried, or at a rate searched for under other conditions."""
    return warnings(_runs_by_arm(group), group.sweep.tunings)


def tunings_of(group: Group) -> dict[str, Tuning]:
    """Arm -> the search that holds for its runs; arms without one are left out."""
    found = {arm: tuning_of(runs[0], group.sweep.tunings) for arm, runs in _runs_by_arm(group).items()}
    return {arm: tuning for arm, tuning in found.items() if tuning}


def _runs_by_arm(group: Group) -> dict[str, list[Record]]:
    arm_of = dict(zip(group.runs["run_id"], group.runs["arm"], strict=True))
    by_arm: dict[str, list[Record]] = {arm: [] for arm in group.arms}
    for record in group.records:
        by_arm[arm_of[record.run_id]].append(record)
    return by_arm


def rates_figure(group: Group) -> Figure | None:
    """Held-out loss against learning rate, one line an arm; the chosen rate ringed. None without a search."""
    searches = tunings_of(group)
    losses = [loss for tuning in searches.values() for loss in _points(_ended(tuning))[1]]
    if not losses:
        return None
    look = plots.styles(group.arms)
    room = 0.15 * (max(losses) - min(losses)) or 0.05
    low, high = min(losses) - room, max(losses) + room
    figure = Figure(figsize=(9.5, 4.3), layout="constrained")
    axes = figure.add_subplot()
    for arm, tuning in searches.items():
        axes.plot(*_points(_ended(tuning)), **look[arm], ms=7, lw=1.6)
        cut_rates, cut_losses = _points([trial for trial in tuning.trials if trial not in _ended(tuning)])
        cut_losses = [min(high, loss) for loss in cut_losses]
        axes.scatter(cut_rates, cut_losses, marker=_STOPPED, s=60, color=look[arm]["color"], zorder=3)
        chosen = [trial for trial in _ended(tuning) if trial.learning_rate == tuning.learning_rate]
        axes.scatter(*_points(chosen), s=230, facecolors="none", edgecolors="black")
    axes.set_xscale("log")
    axes.set_ylim(low, high + 0.3 * room)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("held-out loss, nats per token")
    axes.grid(which="both", color="#e3e3e3", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], label=arm, lw=1.6, ms=7, **look[arm]) for arm in searches]
    handles += [
        Line2D([], [], label="chosen", ls="none", marker="o", ms=13, mfc="none", mec="black"),
        Line2D([], [], label="ended early or diverged", ls="none", marker=_STOPPED, ms=7, color="#6b6b6b"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _ended(tuning: Tuning) -> list[Trial]:
    """The trials that could be chosen."""
    return [trial for trial in tuning.trials if trial.loss is not None and not trial.stopped_early]


def _points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """(rates, losses); a loss that is not finite is infinite here."""
    return [t.learning_rate for t in trials], [math.inf if t.loss is None else t.loss for t in trials]


def rates_text(group: Group) -> str:
    """Under the plot: how the rates were searched, one row a search, and what limits it."""
    searches = tunings_of(group)
    runs = _runs_by_arm(group)
    rows = [
        [
            cell(arm),
            UNKNOWN if tuning.learning_rate is None else f"{tuning.learning_rate:g}",
            ", ".join(_trial(trial) for trial in tuning.trials),
            str(tuning.seed),
            number(sum(trial.seconds for trial in tuning.trials), 1, 1 / 60),
            cell(" ".join(remarks(tuning, runs[arm]))),
        ]
        for arm, tuning in searches.items()
    ]
    headers = ["method", "chosen", "tried: held-out loss", "seed", "minutes", "remarks"]
    return f"{HOW}\n\n{table(headers, rows, text_columns=3)}"


def _trial(trial: Trial) -> str:
    loss = "not finite" if trial.loss is None else number(trial.loss)
    return f"{trial.learning_rate:g}: {loss}" + (f" (ended at step {trial.steps})" if trial.stopped_early else "")
