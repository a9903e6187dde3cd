"""Build a sweep's report: read the records, compare, draw, write.

results/<sweep>/report.md  report.html  plots/*.png  fairness.json
    tables/{runs,comparisons,regression,claims,targets}.csv

>>> build_report(Path("results/default"))
PosixPath('results/default/report.html')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from bench.analysis.claims import Verdict
from bench.analysis.frame import regression_tasks_frame
from bench.identity import write_atomic
from bench.report.answer import Group, groups_of, without_controls
from bench.report.cards import cards_of
from bench.report.claim_rows import claims_rows
from bench.report.claims import known_claims, verdicts_of
from bench.report.exports import write_table
from bench.report.fairness import write_fairness
from bench.report.figures import figures_of
from bench.report.images import draw
from bench.report.load import Sweep, load
from bench.report.markdown import Plot, render
from bench.report.page import Content, page
from bench.report.sample_browser import browsable
from bench.report.target_rows import target_rows

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
    shown = [without_controls(group) for group in groups]
    drawn = {group.name: draw(sweep_folder, group, formats, single=len(groups) == 1) for group in shown}
    claims = known_claims(sweep.problems)
    verdicts = {group.name: verdicts_of(group, claims) for group in groups}
    _write_tables(sweep_folder, sweep, groups, verdicts, formats)
    write_fairness(sweep_folder, groups)
    markdown = render(sweep, groups, plots=drawn, tables=[f"tables/{name}.csv" for name in _TABLES], verdicts=verdicts)
    write_atomic(sweep_folder / "report.md", markdown)
    contents = [_content(group, drawn[group.name], single=len(groups) == 1) for group in shown]
    write_atomic(sweep_folder / "report.html", page(markdown, sweep_folder, contents))
    return sweep_folder / "report.html"


def _content(group: Group, drawn: Sequence[Plot], *, single: bool) -> Content:
    """What the page shows of a group beyond its Markdown."""
    suffix = "" if single else f": {' '.join(group.name.split())}"
    images = {plot.name: plot.path for plot in drawn}
    return Content(suffix, cards_of(group), figures_of(group, images, suffix), browsable(group))


def _write_tables(
    folder: Path,
    sweep: Sweep,
    groups: Sequence[Group],
    verdicts: Mapping[str, Sequence[Verdict]],
    formats: frozenset[str],
) -> None:
    """runs: `frame.runs_frame`; comparisons: all; regression: tasks' values by run; claims: `claim_rows.claims_rows`;
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
