"""The tables behind the answer: differences, regression by task, what was identical.

>>> print(differences_table(group, primary=True))
| method | against | measure | verdict | difference [95%] | baseline | p (Holm) | examples x seeds |
"""

from __future__ import annotations

from bench.analysis.compare import Comparison
from bench.analysis.measures import Measure
from bench.analysis.side_by_side import settings_of_arms
from bench.analysis.stats import FEWEST_EXAMPLES
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, known, number, p_text, table, with_interval


def differences_table(group: Group, *, primary: bool) -> str:
    """One row a paired comparison of the primary score and the loss, or of the other scores; empty without any."""
    shown = [
        c
        for c in group.findings.comparisons
        if c.measure.kind in ("score", "loss")
        and (c.measure == group.findings.primary or c.measure.kind == "loss") == primary
    ]
    headers = [
        "method",
        "against",
        "measure",
        "verdict",
        "difference [95%]",
        "baseline",
        "p (Holm)",
        "examples x seeds",
    ]
    rows = [
        [
            cell(c.arm),
            cell(c.baseline),
            cell(_measure_name(c.measure)),
            verdict_text(c),
            with_interval(c.difference, c.low, c.high, sign=True),
            number(c.baseline_mean),
            p_text(c.p_holm) + (" (McNemar)" if c.test == "McNemar" else ""),
            f"{c.examples} x {c.seeds}",
        ]
        for c in shown
    ]
    return table(headers, rows, text_columns=4) if rows else ""


def _measure_name(measure: Measure) -> str:
    return "test loss" if measure.kind == "loss" else measure.name


def verdict_text(comparison: Comparison) -> str:
    """The verdict with what limits it."""
    word = comparison.verdict
    if word in ("better", "worse") and comparison.within_margin:
        word += ", by less than the margin"
    if word == "inconclusive":
        word += f"; {_to_decide(comparison)}"
    limits = ["one seed"] if comparison.seeds == 1 else []
    limits += [f"different {', '.join(comparison.differing)}"] if comparison.differing else []
    return word + (f" ({'; '.join(limits)})" if limits else "")


def _to_decide(comparison: Comparison) -> str:
    needed = comparison.examples_to_decide
    if comparison.examples < FEWEST_EXAMPLES:
        return f"fewer than {FEWEST_EXAMPLES} examples"
    if comparison.difference == comparison.low == comparison.high == 0:
        return "equal on every example"  # 0 against 0, say: the margin, a share of the baseline, is 0 too
    if needed is not None and needed > comparison.examples:
        return f"about {_rounded(needed)} examples would decide"
    if needed is None:
        return "more seeds are needed" if comparison.seeds > 1 else "more examples are needed"
    return "near the line: more seeds or examples would decide"


def _rounded(count: int) -> str:
    """Two significant digits: it is an estimate."""
    scale = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // scale) * scale:,}"


def regression_table(group: Group) -> str:
    """One row a task: the base's value, then every arm's change with interval and verdict."""
    changes = [c for c in group.findings.comparisons if c.measure.kind == "regression" and c.baseline == _base(group)]
    measures = list(dict.fromkeys(c.measure for c in changes))
    arms = [arm for arm in group.arms if any(c.arm == arm for c in changes)]
    if not measures:
        return ""
    chance = {
        task.task: task.chance for record in group.records if record.regression for task in record.regression.tasks
    }
    rows = []
    for measure in measures:
        of_task = {c.arm: c for c in changes if c.measure == measure}
        first = next(iter(of_task.values()))
        scale, digits = (100, 1) if measure.higher_is_better else (1, 3)
        values = [_change(of_task.get(arm), digits, scale) for arm in arms]
        limits = [number(chance.get(measure.name), digits, scale), number(first.baseline_mean, digits, scale)]
        rows.append([cell(measure.name), cell(measure.unit), str(first.examples), *limits, *values])
    headers = ["task", "metric", "items", "chance", cell(_base(group)), *(f"{cell(arm)}: change [95%]" for arm in arms)]
    return table(headers, rows, text_columns=2)


def _base(group: Group) -> str:
    return next((c.baseline for c in group.findings.comparisons), "")


def _change(comparison: Comparison | None, digits: int, scale: float) -> str:
    if comparison is None:
        return UNKNOWN
    interval = with_interval(comparison.difference, comparison.low, comparison.high, digits, scale, sign=True)
    word = comparison.verdict
    return f"{interval} {'**' + word + '**' if word in ('better', 'worse') else word}"


def divergence_table(group: Group) -> str:
    """One row an arm: its divergence from the base on each kind of text, and the verdict against full fine-tuning."""
    measures = [measure for measure in group.findings.tables if measure.kind == "divergence"]
    rows = []
    for arm in group.arms:
        own = [group.findings.estimate(measure, arm) for measure in measures]
        if any(own):
            values = [with_interval(e.mean, e.low, e.high) if e else UNKNOWN for e in own]
            against = [
                f"{cell(c.measure.name)}: {verdict_text(c)} against {cell(c.baseline)}"
                for c in group.findings.comparisons
                if c.measure in measures and c.arm == arm
            ]
            rows.append([cell(arm), *values, "; ".join(against) or UNKNOWN])
    headers = ["method", *(f"{cell(measure.name)}, nats/token" for measure in measures), "compared (better: closer)"]
    return table(headers, rows) if rows else ""


def sensitivity_table(group: Group) -> str:
    """The smallest change that each arm's data show with 80% power, by task."""
    changes = [c for c in group.findings.comparisons if c.measure.kind == "regression" and c.measure.higher_is_better]
    changes = [c for c in changes if c.baseline == _base(group) and known(c.detectable)]
    arms = [arm for arm in group.arms if any(c.arm == arm for c in changes)]
    # No spread at all (no item changed) says nothing about what would have been seen.
    found = {(c.measure.name, c.arm): c.detectable or None for c in changes}
    tasks = list(dict.fromkeys(c.measure.name for c in changes))
    rows = [[cell(task), *(number(found.get((task, arm)), 1, 100) for arm in arms)] for task in tasks]
    return table(["task", *(cell(arm) for arm in arms)], rows) if rows else ""


def differing_settings_table(group: Group) -> str:
    """One row a setting that differs between arms; "-" where a setting does not apply."""
    _, different = settings_of_arms(group.findings.arms)
    arms = list(group.findings.arms)
    rows = [[cell(name), *(cell(values.get(arm, UNKNOWN)) for arm in arms)] for name, values in different.items()]
    return table(["setting", *(cell(arm) for arm in arms)], rows, text_columns=1 + len(arms)) if rows else ""


def identical_settings_table(group: Group) -> str:
    """One row a setting that is the same for all arms that have it."""
    same, _ = settings_of_arms(group.findings.arms)
    rows = [[cell(name), cell(value)] for name, value in same.items()]
    return table(["setting", "value"], rows, text_columns=2) if rows else ""
