"""A report as Markdown, and the card of an exported adapter or model: what GitHub, a hub and an editor show.

Every text is escaped; a code block can't be ended from inside. The metadata on top of a card are those that model hubs
read (`huggingface_hub.ModelCardData`); its text is a template.

>>> render(report, {"memory": "plots/memory.svg"}).splitlines()[0]
'# Fine-tuning report: reference'
>>> print(card(manifest))
---
base_model: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

import jinja2
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bench.checkpoint import Manifest, ScoreInterval
from bench.metrics import Scale
from bench.record import Sample
from bench.report.section import UNKNOWN, Report, Section, Table, percent
from bench.served import ServedAnswer
from bench.stats.decide import decide
from bench.stats.frames import groups, load
from bench.stats.paired import means
from bench.stats.reading import read_record, read_rows
from bench.trust import LONGEST_TEXT, printable, shortened

_SPECIAL = re.compile(r"([\\`*\[\]<>|&~#]|(?<!\w)_|_(?!\w))")


def render(report: Report, images: Mapping[int, str]) -> str:
    """The whole file.

    Args:
        images: `id` of a chart -> path of its image, relative to the report.
    """
    blocks = [f"# {line(report.title)}" if report.title else "", line(report.subtitle)]
    for chapter in report.chapters:
        level = 3 if chapter.title else 2
        blocks += [f"## {line(chapter.title)}"] if chapter.title else []
        blocks += [block for section in chapter.parts for block in _section(section, level, images)]
    blocks += [block for section in report.closing for block in _section(section, 2, images)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _section(section: Section, level: int, images: Mapping[int, str]) -> Iterator[str]:
    if section.fold:
        yield f"<details><summary>{escape(' '.join(printable(section.title).split()))}</summary>"
    else:
        yield f"{'#' * level} {line(section.title)}"
    if section.headline:
        sure = f" ({percent(section.headline.sureness)} sure)" if section.headline.sureness is not None else ""
        yield f"**{line(section.headline.sentence)}**{sure}"
        yield line(section.headline.reason)
        yield _list(section.headline.asides)
    yield line(section.lead)
    yield _list(section.items)
    if section.chart and id(section.chart) in images:
        yield f"![{line(section.chart.alternative)}]({images[id(section.chart)]})"
    yield _table(section.table) if section.table else ""
    yield fenced(section.code) if section.code else ""
    if section.examples:
        yield f"{len(section.examples.rows):,} test examples can be browsed in report.html."
    for part in section.parts:
        yield from _section(part, level + 1, images)
    yield line(section.note)
    yield "</details>" if section.fold else ""


def _table(table: Table) -> str:
    rule = [":---" if place < table.text_columns else "---:" for place in range(len(table.headers))]
    rows = [[line(header) for header in table.headers], rule]
    for place, row in enumerate(table.rows):
        cells = [line(cell) or UNKNOWN for cell in row]
        rows.append([f"**{cell}**" if place in table.bold and at == 0 else cell for at, cell in enumerate(cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {line(item)}" for item in items)


def line(text: object) -> str:
    """Text on one line that shows exactly this text, in a paragraph and in a table's cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(shortened(printable(text), LONGEST_TEXT).split()))


def fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{shortened(printable(text).rstrip(), LONGEST_TEXT)}\n{fence}"


# --- The card of an export ---


def own_scores(run: Path, form: str | None = None) -> dict[str, ScoreInterval]:
    """A run's own scores by metric, with their 95% intervals over the test examples.

    Args:
        form: of serving, or of an export that was judged; None: the run as it was evaluated.
    """
    rows: Sequence[Sample | ServedAnswer] = read_rows(Sample, run / "samples.jsonl.gz", [])
    if form is not None:
        answers = read_rows(ServedAnswer, run / "served_answers.jsonl.gz", [])
        rows = [answer for answer in answers if answer.form == form]
    record = read_record(run, [])
    scales = record.evaluate.scales if record and record.evaluate else {}
    found: dict[str, ScoreInterval] = {}
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        values = [row.scores[name] for row in rows if name in row.scores]
        bounds = scales.get(name, Scale()).bounds
        estimate = means([np.array([values], dtype=float)], value_range=bounds).of(0)
        found[name] = ScoreInterval(estimate.mean, *estimate.interval())
    return found


def card_of(run: Path) -> Callable[[Manifest], str]:
    """`card`, with what the run's sweep says to use, how sure that is and why, where it has rivals."""
    sweep = load(run.parent)
    group = next((group for group in groups(sweep) if run.name in group.arm_of), None)
    decision = decide(group) if group else None
    if group is None or decision is None or decision.sureness is None:
        return card
    arms, sure = ", ".join(map(str, decision.arms["arm"])), f"{percent(decision.sureness)} sure"
    told = f"{decision.sentence} ({sure}, of {arms}; this is {group.arm_of[run.name]}.) {decision.reason}"
    return partial(card, decided=told)


def card(manifest: Manifest, decided: str | None = None) -> str:
    """The whole text of the card; `decided`: the decision of the sweep that the run is from."""
    loader = jinja2.PackageLoader("bench.report")
    environment = jinja2.Environment(loader=loader, autoescape=False, undefined=jinja2.StrictUndefined)
    environment.filters |= {"cell": line, "fenced": fenced}
    told = {"manifest": manifest, "method": manifest.config.method, "decided": decided}
    text = environment.get_template("card.md.j2").render(told)
    content = f"---\n{_metadata(manifest).to_yaml()}\n---\n\n{text}"
    return str(ModelCard(re.sub(r"\n{3,}", "\n\n", content)))


def _metadata(manifest: Manifest) -> ModelCardData:
    task, on_hub = manifest.config.task, manifest.base.source == "hub"
    dataset = task.hub_dataset
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or task.name,
            dataset_name=task.name,
            dataset_split="test",
            metric_type=name,
            metric_name=f"{name}, 95% interval {score.low:.3f} to {score.high:.3f}",
            metric_value=round(score.value, 6),
        )
        for name, score in manifest.evaluated.scores.items()
    ]
    return ModelCardData(
        base_model=manifest.base.location if on_hub else None,
        library_name="peft" if manifest.kind == "adapter" else "transformers",
        license=manifest.license,
        datasets=dataset,
        pipeline_tag="text-generation",
        tags=[manifest.config.method.name, "sft", *(["lora"] if manifest.kind == "adapter" else [])],
        model_name=manifest.run_id,
        eval_results=results,
    )
