"""Test examples to browse: prompt, reference, each method's answer and its scores.

>>> section(group).examples.arms
['base', 'full', 'lora', 'qlora']
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report.section import Examples, Section
from bench.report.sections.answer import metric_name
from bench.stats.frames import Group

DISAGREE = 0.1  # difference of two methods' scores of one example from which on they disagree


def section(group: Group) -> Section | None:
    """The first seed of each arm; None without test answers, or without any score of them."""
    samples, primary = group.samples, f"score_{metric_name(group)}"
    scores = [str(c) for c in samples if str(c).startswith("score_") and samples[c].notna().any()]
    scores.sort(key=lambda name: name != primary)
    firsts = {arm: of_seed[0].run_id for arm, of_seed in group.by_arm.items()}
    by_arm = {arm: _answers(samples[samples["run_id"] == run], scores) for arm, run in firsts.items()}
    by_arm = {arm: answers for arm, answers in by_arm.items() if answers}
    if not by_arm or not scores:
        return None
    trained = set(group.arms.loc[~group.arms["untrained"].astype(bool), "arm"])
    compared = [arm for arm in by_arm if arm in trained] or list(by_arm)
    rows: list[tuple[float, int, list[Any]]] = []
    texts = samples.drop_duplicates("example_id")[["example_id", "prompt", "reference"]]
    for place, (example, prompt, reference) in enumerate(texts.itertuples(index=False)):
        answers = {arm: found.get(example) for arm, found in by_arm.items()}
        shown = [answer[2] for arm in compared if (answer := answers[arm]) and answer[2] is not None]
        spread = round(max(shown) - min(shown), 4) if shown else 0.0
        rows.append((spread, place, [str(example), prompt, reference, spread, list(answers.values())]))
    rows.sort(key=lambda row: (-row[0], row[1]))
    places, contents = [place for _, place, _ in rows], [row for *_, row in rows]
    metrics = [name.removeprefix("score_") for name in scores]
    return Section("Examples", examples=Examples(metrics, list(by_arm), DISAGREE, contents, places))


def _answers(samples: pd.DataFrame, scores: list[str]) -> dict[str, list[Any]]:
    """Example -> [answer, whether it was cut, each of the scores]."""
    values = samples[scores].astype(float).round(4).itertuples(index=False)
    columns = (samples["example_id"], samples["prediction"], samples["cut_at_limit"], values)
    return {
        example: [prediction, bool(cut), *(value if value == value else None for value in own)]
        for example, prediction, cut, own in zip(*columns, strict=True)
    }
