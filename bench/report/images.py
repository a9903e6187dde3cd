"""The figures of a group as image files, for the Markdown report and for papers.

>>> draw(Path("results/default"), group, frozenset({"svg"}), single=True)[0].path
'plots/quality_against_cost.png'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench.report import loss_plots, memory_plots, plots, rates, serving_plots
from bench.report.answer import Group
from bench.report.exports import PLOTS
from bench.report.markdown import Plot


def draw(folder: Path, group: Group, formats: frozenset[str], *, single: bool) -> list[Plot]:
    """Every plot that the group has data for, written as PNG and in the formats asked for."""
    prefix = "" if single else re.sub(r"[^a-z0-9.]+", "-", group.name.lower()).strip("-") + "-"
    (folder / "plots").mkdir(exist_ok=True)
    made = []
    for name, heading, alt, text, figure_of in _FIGURES:
        figure = figure_of(group)
        if figure is None:
            continue
        path = f"plots/{prefix}{name}.png"
        figure.savefig(folder / path, dpi=plots.DPI)
        for form in formats & PLOTS.keys():
            figure.savefig((folder / path).with_suffix(f".{PLOTS[form]}"))
        shown = text if isinstance(text, str) else text(group)
        made.append(Plot(name, heading if single else f"{heading}: {group.name}", path, alt, shown))
    return made


def _loss_curves(group: Group) -> Figure | None:
    return loss_plots.loss_curves(group.with_arm(group.sweep.steps), group.curves, group.arms)


def _regression_changes(group: Group) -> Figure | None:
    baseline = next((c.baseline for c in group.findings.comparisons), None)
    return plots.regression_changes([c for c in group.findings.comparisons if c.baseline == baseline], group.arms)


_FIGURES: Sequence[tuple[str, str, str, str | Callable[[Group], str], Callable[[Group], Figure | None]]] = (
    (
        "quality_against_cost",
        "Quality against memory and time",
        "Two charts: the primary score of each method against its peak training memory and its training time.",
        "Mean over seeds with the 95% interval of the score. Ringed: the Pareto set, that is no other trained method "
        "is at least as good in score, memory and time and better in one (by point estimates). The untrained model "
        "has no training cost: a dashed line with its interval.",
        lambda group: plots.quality_against_cost(group.findings, group.runs),
    ),
    (
        "loss_curves",
        "Loss",
        "Three charts: training and held-out loss of each run by optimizer step, by token and by minute of training.",
        "Bold: loss on the validation split, taken to be linear in the tokens between its points. Faint: training loss "
        "of each step's batch. One line a seed. Time: that of the optimizer steps, evaluation excluded; the first "
        "compile. Ringed: where a run first reached the target (see Time, tokens and energy to a target).",
        _loss_curves,
    ),
    (
        "learning_rate",
        "Learning rate",
        "Line chart: held-out loss at the end of each trial against its learning rate, by method.",
        rates.rates_text,
        rates.rates_figure,
    ),
    (
        "memory",
        "Peak training memory",
        "Stacked bars: peak training memory of each method by weights, gradients, optimizer state and the rest.",
        "Mean over seeds. Weights, gradients and optimizer state are summed over the tensors; activations and "
        "workspace are the rest of the measured peak. On a CPU the process (Python and libraries) is part of the peak.",
        lambda group: memory_plots.memory_parts(group.runs),
    ),
    (
        "memory_over_steps",
        "Memory over training",
        "Line chart: memory held after each optimizer step and the highest until then, by method.",
        "Thin: held at the end of each step. Bold: the highest of the training phase so far; the marker is the step "
        "in which the peak arose (the table of memory by phase says in which part of a step). One line a seed.",
        lambda group: memory_plots.memory_over_steps(group.with_arm(group.sweep.steps), group.arms),
    ),
    (
        "regression",
        "Regression",
        "Dot chart: change of each regression task against the base model, with intervals, by method.",
        "Paired change on the same items, tuned - base, in points; left of the line is forgetting. 95% intervals.",
        _regression_changes,
    ),
    (
        "adapters",
        "Requests for many adapters",
        "Two charts: generated tokens a second and memory against the number of adapters on one base, by method.",
        serving_plots.text_of,
        serving_plots.figure_of,
    ),
)
