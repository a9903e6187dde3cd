"""The test examples of a group for the page's browser: prompt, reference, each method's answer and scores, as JSON.

A page has a limit, so as many examples as fit are kept, those first on which the methods' scores differ most; what was
left out is counted. The text of models is data in the page, never markup (`templates/samples.js` sets it as text).

    >>> kept = browsable(group).within(1_000_000)
    >>> kept.shown, kept.examples
    (128, 128)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.analysis.order import is_base
from bench.report.answer import Group
from bench.report.format import shortened

_PROMPT_CHARACTERS, _ANSWER_CHARACTERS = 2000, 1500
DISAGREE = 0.1  # scores of one example that lie this far apart


@dataclass(frozen=True)
class Kept:
    """What goes into the page."""

    content: str  # JSON, safe inside a script element: no "<"
    shown: int
    examples: int  # that there are


@dataclass(frozen=True)
class Browsable:
    """A group's examples, those of the largest disagreement first."""

    facts: dict[str, Any]  # metrics, arms; which of these must disagree, and by how much
    rows: list[str]  # JSON of one example each
    order: list[int]  # place of each in the test set

    def within(self, limit_bytes: int) -> Kept:
        """As many as fit, in the order of the test set."""
        total = len(json.dumps(self.facts)) + 100
        count = 0
        for row in self.rows:
            total += len(row.encode()) + 2
            if total > limit_bytes:
                break
            count += 1
        kept = sorted(zip(self.order[:count], self.rows[:count], strict=True))
        rows = ",\n".join(row for _, row in kept)
        facts = _json(self.facts)
        return Kept(f'{{"facts": {facts}, "rows": [{rows}]}}', count, len(self.rows))


def browsable(group: Group) -> Browsable | None:
    """The examples of the first seed of each arm; None where none was scored."""
    primary = group.findings.primary
    first = {arm: runs[0] for arm, runs in group.findings.arms.items()}
    samples = group.sweep.samples
    samples = samples[samples["run_id"].isin([run.run_id for run in first.values()])]
    if primary is None or samples.empty:
        return None
    metrics = _metrics(samples, primary.name)
    by_arm = {arm: _answers(samples[samples["run_id"] == run.run_id], metrics) for arm, run in first.items()}
    trained = [arm for arm, run in first.items() if not is_base(run)]
    compared = trained if len(trained) > 1 else list(first)  # the untrained would differ nearly everywhere
    facts = {"metrics": metrics, "arms": list(first), "compared": compared, "disagree": DISAGREE}
    texts = samples.drop_duplicates("example_id")[["example_id", "prompt", "reference"]]
    found: list[tuple[float, int, str]] = []
    for place, (example, prompt, reference) in enumerate(texts.itertuples(index=False)):
        answers = [answers.get(example) for answers in by_arm.values()]
        told = [by_arm[arm].get(example) for arm in compared]
        scores = [answer[2] for answer in told if answer and answer[2] is not None]
        spread = max(scores) - min(scores) if scores else 0.0
        row = [str(example), shortened(prompt, _PROMPT_CHARACTERS), shortened(reference, _ANSWER_CHARACTERS),
               round(spread, 4), answers]  # fmt: skip
        found.append((-spread, place, _json(row)))
    found.sort()
    return Browsable(facts, [row for *_, row in found], [place for _, place, _ in found])


def _metrics(samples: pd.DataFrame, primary: str) -> list[str]:
    """Those of these samples, the primary one first."""
    names = [c.removeprefix("score_") for c in map(str, samples) if c.startswith("score_") and samples[c].notna().any()]
    return sorted(names, key=lambda name: name != primary)


def _answers(samples: pd.DataFrame, metrics: list[str]) -> dict[str, list[Any]]:
    """example -> [prediction, cut at the limit, score by metric ...]."""
    scores = samples[[f"score_{metric}" for metric in metrics]].astype(float).round(4)
    return {
        example: [shortened(prediction, _ANSWER_CHARACTERS), bool(cut), *(v if v == v else None for v in values)]
        for example, prediction, cut, values in zip(
            samples["example_id"], samples["prediction"], samples["cut_at_limit"],
            scores.itertuples(index=False), strict=True,
        )
    }  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
