"""Build the report of one or several sweep folders: read, decide, draw, write.

results/<sweep>/report.html  report.md  plots/*.svg  tables/{runs,arms,decision,comparisons,claims}.csv

    >>> write_report(*read_groups(Path("results/reference")))
    PosixPath('results/reference/report.html')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import TypeAdapter

from bench.identity import write_atomic
from bench.mistakes import ConfigurationError
from bench.record import DataSummary
from bench.report import html, markdown
from bench.report.charts import image, svg
from bench.report.section import Report, Section, Table, anchor, percent, walk
from bench.report.sections import SECTIONS, answer, claims, data, environment
from bench.stats.compare import compare
from bench.stats.decide import decide
from bench.stats.frames import Group, Sweep, groups, load
from bench.stats.limits import Limits
from bench.trust import own_folder

IMAGES: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")
FORMATS = {"png": "charts", "pdf": "charts", "latex": "tables", "parquet": "tables"}  # beside SVG and CSV


def read_groups(
    *folders: Path, allowed: frozenset[str] = frozenset(), target_loss: float | None = None
) -> tuple[Sweep, list[Group]]:
    """(the folders' runs, by model, task and suite). What cannot be read is a problem of the sweep, not an error.

    Args:
        allowed: what compared runs may differ in, by name (`fairness.REQUIREMENTS`).
        target_loss: held-out, nats per token, whose time and tokens are told; None: the worst final loss compared.

    Raises:
        FileNotFoundError: when a folder does not exist.
        ConfigurationError: when no folder holds a run.
    """
    sweep = load(*folders)
    if not sweep.records and not sweep.problems:
        looked = "no run in it (looked for */record.json); run a sweep first: make sweep"
        raise ConfigurationError([f"{folders[0]}: {looked}"])
    return sweep, groups(sweep, allowed=allowed, target_loss=target_loss)


def data_page(found: Mapping[str, Any]) -> str:
    """The data section of what the stage `check` found, as Markdown."""
    summary = TypeAdapter(DataSummary).validate_python(found["data"])
    section = data.data_section(summary, found["suite"], found["blind"])
    if section is None:
        return ""
    unfolded = replace(section, fold=False, parts=[replace(part, fold=False) for part in section.parts])
    return markdown.render(Report("", "", [], [unfolded]), {})


def write_report(
    sweep: Sweep, found: Sequence[Group], limits: Limits | None = None, formats: frozenset[str] = frozenset()
) -> Path:
    """Write the report into the first of the sweep's folders; returns the path of its HTML.

    Args:
        limits: of the answer; None: none.
        formats: of charts and tables, beside SVG and CSV, by name (`FORMATS`).

    Raises:
        OSError: a folder to write into is a link, or the disk is full.
    """
    folder = sweep.folders[0]
    report = report_of(sweep, found, limits)
    images = draw(own_folder(folder / "plots"), report, formats)
    _write_tables(own_folder(folder / "tables"), sweep, found, limits, formats)
    write_atomic(folder / "report.md", markdown.render(report, images))
    write_atomic(folder / "report.html", html.page(report))
    return folder / "report.html"


def report_of(sweep: Sweep, found: Sequence[Group], limits: Limits | None = None) -> Report:
    """The whole report as data: one chapter a group, and an overview when there are several."""
    chapters = []
    for group in found:
        sections = [answer.section(group, limits), answer.change(group, limits), *(make(group) for make in SECTIONS)]
        single = {arm for arm, runs in group.by_arm.items() if len(runs) == 1 and not runs[0].config.untrained}
        marked = [_with_seeds(section, single) for section in sections if section]
        chapters.append(Section(group.name if len(found) > 1 else "", parts=marked))
    if len(found) > 1:
        chapters.insert(0, Section("Overview", parts=[_overview(found, limits)]))
    names = ", ".join(folder.name for folder in sweep.folders)
    title = found[0].name if len(found) == 1 else f"{len(found)} comparisons" if found else "no finished run"
    return Report(f"Fine-tuning report: {names}", f"{title}{_facts(sweep)}", chapters, environment.sections(sweep))


def _with_seeds(section: Section, single: set[str]) -> Section:
    """The section with a mark at every method of which one seed was run, in its tables and those of its parts."""

    def marked(cells: Sequence[str]) -> list[str]:
        return [" - ".join(f"{arm} (1 seed)" if arm in single else arm for arm in c.split(" - ")) for c in cells]

    section = replace(section, parts=[_with_seeds(part, single) for part in section.parts])
    if (table := section.table) is None:
        return section
    rows = [[*marked(row[: table.text_columns]), *row[table.text_columns :]] for row in table.rows]
    shown = replace(table, headers=marked(table.headers), rows=rows)
    if not any("(1 seed)" in cell for row in [shown.headers, *rows] for cell in row):
        return section
    note = " ".join(filter(None, [section.note, "(1 seed): another seed may turn what is said of it."]))
    return replace(section, table=shown, note=note)


def _facts(sweep: Sweep) -> str:
    """Seeds, test examples and devices, as far as they are known."""
    runs = sweep.runs.reindex(columns=["seed", "test_examples", "device"])
    examples = runs["test_examples"].max()
    counts = {"seed": runs["seed"].nunique(), "test example": 0 if pd.isna(examples) else int(examples)}
    facts = [f"{count:,} {words}{'s' if count > 1 else ''}" for words, count in counts.items() if count]
    return "".join(f" · {fact}" for fact in [*facts, *runs["device"].dropna().unique()])


def _overview(found: Sequence[Group], limits: Limits | None) -> Section:
    rows = []
    for group in found:
        decision = decide(group, limits)
        rows.append([group.name, decision.sentence, percent(decision.sureness), decision.reason])
    headers = ["model / task / suite", "answer", "sure", "why"]
    return Section("One answer each", table=Table(headers, rows, text_columns=4))


def draw(folder: Path, report: Report, formats: frozenset[str]) -> dict[int, str]:
    """Write every chart; `id` of a chart -> path of its SVG, relative to the report."""
    images: dict[int, str] = {}
    for chapter in report.chapters:
        for chart in [section.chart for section in walk([chapter]) if section.chart]:
            name = anchor(f"{chapter.title} {chart.name}".strip(), (Path(path).stem for path in images.values()))
            images[id(chart)] = f"plots/{name}.svg"
            write_atomic(folder / f"{name}.svg", svg(chart))
            for kind in IMAGES:
                if kind in formats:
                    write_atomic(folder / f"{name}.{kind}", image(chart, kind))
    return images


def _write_tables(
    folder: Path, sweep: Sweep, found: Sequence[Group], limits: Limits | None, formats: frozenset[str]
) -> None:
    """Frames as CSV, and in the formats asked for."""
    frames = {
        "runs": sweep.runs,
        "arms": sweep.arms,
        "decision": _all({group.name: decide(group, limits).arms for group in found}),
        "comparisons": _all({group.name: compare(group).comparisons for group in found}),
        "claims": _all({group.name: claims.verdicts_frame(group) for group in found}),
    }
    for name, frame in frames.items():
        texts = frame.map(lambda value: str(value) if isinstance(value, list | dict) else value)
        write_atomic(folder / f"{name}.csv", texts.map(_harmless).to_csv(index=False))
        if "latex" in formats:
            write_atomic(folder / f"{name}.tex", texts.to_latex(index=False, escape=True, na_rep="-"))
        if "parquet" in formats:
            write_atomic(folder / f"{name}.parquet", texts.to_parquet(None))


def _harmless(value: Any) -> Any:
    """A cell of a CSV; a text that a spreadsheet would take for a formula is quoted as one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _all(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The groups' frames one below the other, with the group's name."""
    named = [frame.assign(group=name) for name, frame in frames.items() if len(frame)]
    return pd.concat(named, ignore_index=True) if named else pd.DataFrame()
