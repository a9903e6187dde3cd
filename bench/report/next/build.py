"""Build the report of one or several sweep folders: read, decide, draw, write.

results/<sweep>/report.html  report.md  plots/*.svg  tables/{runs,arms,comparisons,claims}.csv

    >>> build_report(Path("results/reference"))
    PosixPath('results/reference/report.html')
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from bench.config import ConfigurationError, suggest
from bench.identity import write_atomic
from bench.report.next import html, markdown
from bench.report.next.charts import image, svg
from bench.report.next.section import Chapter, Report, Section, Table, anchor, percent
from bench.report.next.sections import SECTIONS, environment
from bench.stats.decide import decide
from bench.stats.frames import Group, Sweep, groups, load

FORMATS = {"png": "charts", "pdf": "charts", "latex": "tables", "parquet": "tables"}  # beside SVG and CSV


class NoRecordsError(Exception):
    """There is nothing to report."""


def build_report(
    sweep_folder: Path,
    *more: Path,
    allowed: frozenset[str] = frozenset(),
    target_loss: float | None = None,
    formats: frozenset[str] = frozenset(),
) -> Path:
    """Write the report of the folders into the first one and return the path of its HTML.

    What cannot be read is a row of the report's failures, not an error.

    Args:
        allowed: what compared runs may differ in, by name (`fairness.REQUIREMENTS`).
        target_loss: held-out, nats per token, whose time and tokens are told; None: the worst final loss compared.
        formats: of charts and tables, beside SVG and CSV, by name (`FORMATS`).

    Raises:
        FileNotFoundError: when a folder does not exist.
        NoRecordsError: when no folder holds a run.
    """
    sweep = load(sweep_folder, *more)
    if not sweep.records and not sweep.problems:
        raise NoRecordsError(f"{sweep_folder}: no run in it (looked for */record.json); run a sweep first: make sweep")
    found = groups(sweep, allowed=allowed, target_loss=target_loss)
    report = report_of(sweep, found)
    images = _draw(sweep_folder, report, formats)
    _write_tables(sweep_folder, sweep, found, formats)
    write_atomic(sweep_folder / "report.md", markdown.render(report, images))
    write_atomic(sweep_folder / "report.html", html.page(report))
    return sweep_folder / "report.html"


def formats_of(text: str) -> frozenset[str]:
    """The names in a comma-separated list.

    Raises:
        ConfigurationError: names that are not known, with those that are.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [f"export={name}: no such format{suggest(name, list(FORMATS))}" for name in names if name not in FORMATS]
    if wrong or not names:
        raise ConfigurationError(wrong or [f"export: name a format{suggest('', list(FORMATS))}"])
    return frozenset(names)


def report_of(sweep: Sweep, found: Sequence[Group]) -> Report:
    """The whole report as data: one chapter a group, and an overview when there are several."""
    chapters = [
        Chapter(group.name if len(found) > 1 else "", [part for make in SECTIONS if (part := make(group))])
        for group in found
    ]
    if len(found) > 1:
        chapters.insert(0, Chapter("Overview", [_overview(found)]))
    names = ", ".join(folder.name for folder in sweep.folders)
    title = found[0].name if len(found) == 1 else f"{len(found)} comparisons" if found else "no finished run"
    return Report(f"Fine-tuning report: {names}", f"{title}{_facts(sweep)}", chapters, environment.sections(sweep))


def _facts(sweep: Sweep) -> str:
    """Seeds, test examples and devices, as far as they are known."""
    runs = sweep.runs
    facts = []
    for column, words in (("seed", "seed"), ("test_examples", "test example")):
        values = runs[column].dropna() if column in runs else []
        count = len(set(values)) if column == "seed" else int(max(values, default=0))
        facts += [f"{count:,} {words}{'s' if count > 1 else ''}"] if count else []
    facts += list(runs["device"].dropna().unique()) if "device" in runs else []
    return "".join(f" · {fact}" for fact in facts)


def _overview(found: Sequence[Group]) -> Section:
    rows = []
    for group in found:
        decision = decide(group)
        rows.append([group.name, decision.sentence, percent(decision.sureness), decision.reason])
    headers = ["model / task / suite", "answer", "sure", "why"]
    return Section("One answer each", table=Table(headers, rows, text_columns=4))


def _walk(sections: Sequence[Section]) -> Iterator[Section]:
    for section in sections:
        yield section
        yield from _walk(section.parts)


def _draw(folder: Path, report: Report, formats: frozenset[str]) -> dict[int, str]:
    """Write every chart; `id` of a chart -> path of its SVG, relative to the report."""
    (folder / "plots").mkdir(exist_ok=True)
    images: dict[int, str] = {}
    for chapter in report.chapters:
        for chart in [section.chart for section in _walk(chapter.sections) if section.chart]:
            name = anchor(f"{chapter.title} {chart.name}".strip(), (Path(path).stem for path in images.values()))
            images[id(chart)] = f"plots/{name}.svg"
            write_atomic(folder / "plots" / f"{name}.svg", svg(chart))
            for kind in ("png", "pdf"):
                if kind in formats:
                    write_atomic(folder / "plots" / f"{name}.{kind}", image(chart, kind))
    return images


def _write_tables(folder: Path, sweep: Sweep, found: Sequence[Group], formats: frozenset[str]) -> None:
    """Frames as CSV, and in the formats asked for."""
    frames = {"runs": sweep.runs, "arms": sweep.arms, "decision": _all(found, lambda group: decide(group).arms)}
    (folder / "tables").mkdir(exist_ok=True)
    for name, frame in frames.items():
        path = folder / "tables" / name
        write_atomic(path.with_suffix(".csv"), frame.to_csv(index=False))
        if "latex" in formats:
            write_atomic(path.with_suffix(".tex"), frame.to_latex(index=False, escape=True, na_rep="-"))
        if "parquet" in formats:
            frame.map(lambda value: str(value) if isinstance(value, list | dict) else value).to_parquet(
                f"{path}.parquet"
            )


def _all(found: Sequence[Group], frame_of: object) -> pd.DataFrame:
    """The groups' frames one below the other, with the group's name."""
    frames = [frame_of(group).assign(group=group.name) for group in found]  # type: ignore[operator]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
