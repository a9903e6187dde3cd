"""Several sweeps over time: one row a sweep and method, with date, commit, quality, memory and speed, and a plot.

Values stand side by side as they were measured; nothing is tested, and sweeps of other machines are no earlier state of
this one, so the device stands beside each. To compare two sweeps, give both to `python -m bench.report`.

    >>> build_history(Path("results/a"), Path("results/b"))
    PosixPath('results/a/history.html')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.analysis.frame import runs_frame
from bench.analysis.order import arm_names, method_order
from bench.identity import write_atomic
from bench.record import Record
from bench.report.answer import busy_mark, column, mean
from bench.report.build import NoRecordsError
from bench.report.charts.history import QUANTITIES, history_chart
from bench.report.charts.look import spec_of
from bench.report.figures import ChartFigure
from bench.report.format import UNKNOWN, cell, mean_and_range, table
from bench.report.load import read_records
from bench.report.page import Content, page

_TEXT = (
    "Means over seeds, with the lowest and the highest. Values as measured: nothing was tested. Speed and memory "
    "belong to the device; (busy): others used the machine. Started: the first run of the method in that sweep, UTC; "
    "an untrained model's run may be taken over from an earlier sweep."
)


@dataclass(frozen=True)
class Entry:
    """One method of one sweep."""

    group: str  # model / task / suite
    sweep: str
    arm: str
    started: str  # ISO 8601, of the first run
    commit: str
    device: str
    metric: str  # the task's first
    runs: pd.DataFrame

    def values(self) -> dict[str, list[float]]:
        """Quantity -> the known numbers of its runs."""
        columns = (f"score_{self.metric}", "train_peak_bytes", "train_tokens_per_second")
        return {
            name: [value * scale for value in column(self.runs, source)]
            for name, source, scale in zip(QUANTITIES, columns, (1.0, 2**-30, 1.0), strict=True)
        }


def build_history(*folders: Path) -> Path:
    """Write history.md and history.html into the first folder and return the path of the HTML.

    Raises:
        FileNotFoundError: when a folder does not exist.
        NoRecordsError: when no folder holds a run that can be read.
    """
    entries = history(*folders)
    if not entries:
        raise NoRecordsError(f"{folders[0]}: no run in it (looked for */record.json); run a sweep first: make sweep")
    parts, figures = ["# History"], []
    for group in dict.fromkeys(entry.group for entry in entries):
        heading, own = f"Sweeps of {group}", [entry for entry in entries if entry.group == group]
        parts += [f"## {cell(heading)}", _table(own), _TEXT]
        figures.append(_figure(heading, own))
    markdown = "\n\n".join(parts) + "\n"
    write_atomic(folders[0] / "history.md", markdown)
    write_atomic(folders[0] / "history.html", page(markdown, folders[0], [Content(figures=figures)]))
    return folders[0] / "history.html"


def history(*folders: Path) -> list[Entry]:
    """By group, then by date."""
    by_folder = {folder: read_records(folder)[0] for folder in folders}
    arm_of = arm_names(record for records in by_folder.values() for record in records)
    entries = []
    for folder, records in by_folder.items():
        together: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            group = f"{record.model} / {record.task} / {record.suite}"
            together.setdefault((group, arm_of[record.run_id]), []).append(record)
        entries += [_entry(group, folder.name, arm, own) for (group, arm), own in together.items()]
    return sorted(entries, key=lambda entry: (entry.group, entry.started, method_order(entry.arm)))


def _entry(group: str, sweep: str, arm: str, records: Sequence[Record]) -> Entry:
    stages = [record.train or record.evaluate or record.regression for record in records]
    devices = dict.fromkeys(stage.environment.device for stage in stages if stage)
    metrics = [metric for record in records for metric in record.config.task.metrics]
    commits = dict.fromkeys(_commit(record) for record in records)
    started = min(record.started_at for record in records)
    listed = (", ".join(commits), ", ".join(devices) or UNKNOWN, metrics[0] if metrics else "")
    return Entry(group, sweep, arm, started, *listed, runs_frame(records))


def _commit(record: Record) -> str:
    commit = record.provenance.get("git_commit")
    return UNKNOWN if not commit else f"{commit[:8]}{' (changed)' if record.provenance.get('git_dirty') else ''}"


def _table(entries: Sequence[Entry]) -> str:
    rows = []
    for entry in entries:
        numbers = [mean_and_range(v, digits) for v, digits in zip(entry.values().values(), (3, 2, 0), strict=True)]
        numbers[-1] += busy_mark(entry.runs, "train")
        texts = (entry.started[:16].replace("T", " "), entry.sweep, entry.arm, entry.commit, entry.device, entry.metric)
        rows.append([*map(cell, texts), str(len(entry.runs)), *numbers])
    headers = ["started", "sweep", "method", "commit", "device", "metric", "runs", *QUANTITIES]
    return table(headers, rows, text_columns=6)


def _figure(heading: str, entries: Sequence[Entry]) -> ChartFigure:
    rows = [
        {"started": e.started, "sweep": e.sweep, "arm": e.arm, "commit": e.commit, "device": e.device}
        | {name: mean(values) for name, values in e.values().items()}
        for e in entries
    ]
    points = pd.DataFrame(rows)
    arms = sorted(dict.fromkeys(points["arm"]), key=method_order)
    spec = spec_of(history_chart(points, arms), "The chosen quantity of each method by the date of its sweep.")
    return ChartFigure(heading, spec, "Means over seeds by the date of the sweep; choose what below the chart.", points)
