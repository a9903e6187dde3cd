"""Build a sweep's report: read the records, compare, draw, write.

results/<sweep>/report.md  report.html  plots/*.png  fairness.json
    tables/{runs,comparisons,regression,claims,targets}.csv

>>> build_report(Path("results/default"))
PosixPath('results/default/report.html')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bench.analysis.claims import Verdict
from bench.analysis.frame import regression_tasks_frame
from bench.report import loss_plots, memory_plots, plots, rates, serving_plots, targets
from bench.report.answer import Group, groups_of
from bench.report.claims import claims_rows, known_claims, verdicts_of
from bench.report.exports import PLOTS, write_table
from bench.report.fairness import write_fairness
from bench.report.html import to_html
from bench.report.load import Sweep, load
from bench.report.markdown import Plot, render
from bench.report.target_rows import target_rows
from bench.spec.layout import write_atomic

_TABLES = ("runs", "comparisons", "regression", "claims", "targets")


class NoRecordsError(Exception):
    """There is nothing to report."""


def build_report(
    sweep_folder: Path,
    *more: Path,
    allowed: frozenset[str] = frozenset(),
    target_loss: float | None = None,
    formats: frozenset[str] = frozenset(),
) -> Path:
    """Write the report of one or several sweep folders into the first and return the path of its HTML.

    What cannot be read is a row of the report's failures, not an error.

    Args:
        allowed: what compared runs may differ in, by name (`agreement.REQUIREMENTS`).
        target_loss: held-out, nats per token, of "Time, tokens and energy to a target"; None: `targets.default_target`.
        formats: of tables and plots, beside CSV and PNG, by name (`exports.TABLES`, `exports.PLOTS`).

    Raises:
        FileNotFoundError: when a folder does not exist.
        NoRecordsError: when no folder holds a run.
    """
    sweep = load(sweep_folder, *more)
    if not sweep.records and not sweep.problems:
        raise NoRecordsError(f"{sweep_folder}: no run in it (looked for */record.json); run a sweep first: make sweep")
    groups = groups_of(sweep, allowed=allowed, target_loss=target_loss)
    drawn = {group.name: _draw(sweep_folder, group, formats, single=len(groups) == 1) for group in groups}
    claims = known_claims(sweep.problems)
    verdicts = {group.name: verdicts_of(group, claims) for group in groups}
    _write_tables(sweep_folder, sweep, groups, verdicts, formats)
    write_fairness(sweep_folder, groups)
    markdown = render(sweep, groups, plots=drawn, tables=[f"tables/{name}.csv" for name in _TABLES], verdicts=verdicts)
    write_atomic(sweep_folder / "report.md", markdown)
    write_atomic(sweep_folder / "report.html", to_html(markdown, sweep_folder))
    return sweep_folder / "report.html"


def _draw(folder: Path, group: Group, formats: frozenset[str], *, single: bool) -> list[Plot]:
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
        made.append(Plot(heading if single else f"{heading}: {group.name}", path, alt, shown))
    return made


def _loss_curves(group: Group) -> Figure | None:
    return loss_plots.loss_curves(_of(group, group.sweep.steps), targets.comparisons_of(group), group.arms)


def _of(group: Group, frame: pd.DataFrame) -> pd.DataFrame:
    """The group's rows of a sweep's frame, with their arm."""
    arm = group.runs.set_index("run_id")["arm"]
    rows = frame[frame["run_id"].isin(arm.index)]
    return rows.assign(arm=rows["run_id"].map(arm))


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
        lambda group: memory_plots.memory_over_steps(_of(group, group.sweep.steps), group.arms),
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


def _write_tables(
    folder: Path,
    sweep: Sweep,
    groups: Sequence[Group],
    verdicts: Mapping[str, Sequence[Verdict]],
    formats: frozenset[str],
) -> None:
    """runs: `frame.runs_frame`; comparisons: all; regression: tasks' values by run; claims: `claims.claims_rows`;
    targets: `target_rows.target_rows`."""
    (folder / "tables").mkdir(exist_ok=True)
    rows = [
        {"group": group.name} | {f"measure_{k}": v for k, v in entry.pop("measure").items()} | entry
        for group in groups
        for entry in map(asdict, group.findings.comparisons)
    ]
    frames = {
        "runs": sweep.runs,
        "comparisons": pd.DataFrame(rows),
        "regression": regression_tasks_frame(sweep.records),
        "claims": pd.DataFrame([row for name, judged in verdicts.items() for row in claims_rows(name, judged)]),
        "targets": pd.DataFrame([row for group in groups for row in target_rows(group)]),
    }
    for name, frame in frames.items():
        write_table(frame, folder / "tables" / name, formats)
