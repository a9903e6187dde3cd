"""Public claims about the methods, judged by these runs, or by the planner where they cannot tell.

>>> section(group).lead
'36 claims: 4 hold, 8 do not hold, 6 are not settled, 18 were not tested.'
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import pandas as pd

from bench.report.section import Section, Table, interval, joined, percent
from bench.stats.claims import Verdict, Word, judge, read_claims
from bench.stats.frames import Group

_WORDS: dict[Word, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "not settled": ("is not settled", "are not settled"),
    "not tested": ("was not tested", "were not tested"),
}
_NOTE = (
    "Each claim is an expression over what was measured, drawn as for the answer: it holds when it is true in at least "
    "95% of the draws, does not hold in at most 5%. Predicted: judged by the planner, as these runs are of another "
    "model. Each claim is a question of its own: nothing is adjusted for their number. Verdicts are about this model, "
    "task and machine. Sources: "
)


@lru_cache(maxsize=32)
def verdicts_of(group: Group) -> list[Verdict]:
    """Every known claim judged; none when nothing was trained."""
    return [] if group.arms["untrained"].all() else judge(group, read_claims())


def verdicts_frame(group: Group) -> pd.DataFrame:
    """One row a check and set of arms."""
    return pd.DataFrame([
        {"claim": found.claim.id, "says": found.claim.says, "source": found.claim.source, "verdict": found.word,
         "predicted": found.predicted, "probability": found.probability, "reason": found.reason, "check": part.check,
         "arms": ", ".join(part.arms), "value": part.value, "low": part.low, "high": part.high, "basis": part.basis}
        for found in verdicts_of(group)
        for part in found.parts
    ])  # fmt: skip


def section(group: Group) -> Section | None:
    """None when nothing was trained, or no claim is known."""
    verdicts = verdicts_of(group)
    if not verdicts:
        return None
    counts = Counter(verdict.word for verdict in verdicts)
    said = [f"{counts[word]} {words[counts[word] != 1]}" for word, words in _WORDS.items() if counts[word]]
    sources = list(dict.fromkeys(verdict.claim.source for verdict in verdicts))
    tested = [verdict for verdict in verdicts if verdict.word != "not tested"]
    untested = [verdict for verdict in verdicts if verdict.word == "not tested"]
    tables = {"Judged claims": _judged(tested, sources), "Not tested": _untested(untested, sources)}
    parts = [Section(title, table=table, fold=True) for title, table in tables.items() if table.rows]
    note = _NOTE + " ".join(f"({place}) {source}" for place, source in enumerate(sources, 1))
    lead = f"{len(verdicts)} public claims: {joined(said)}."
    items = [_opposed(verdict) for verdict in tested if verdict.word == "does not hold"]
    return Section("Claims", lead=lead, items=items, note=note, parts=parts)


def _opposed(verdict: Verdict) -> str:
    return f"Does not hold{_marked(verdict)}: {verdict.claim.says}"


def _marked(verdict: Verdict) -> str:
    return " (predicted)" if verdict.predicted else ""


def _judged(verdicts: list[Verdict], sources: list[str]) -> Table:
    rows = []
    for verdict in verdicts:
        source = f"({sources.index(verdict.claim.source) + 1})"
        found = "; ".join(f"{part.check}: {interval(part.value, part.low, part.high)}" for part in verdict.parts)
        basis = ", ".join(dict.fromkeys(part.basis for part in verdict.parts if part.basis))
        remark = " ".join(filter(None, [verdict.reason, verdict.claim.reading]))
        word = verdict.word + _marked(verdict)
        rows.append([verdict.claim.says, source, word, percent(verdict.probability), found, basis, remark])
    headers = ["claim", "source", "verdict", "true in", "check: measured [95%]", "basis", "remark"]
    return Table(headers, rows, text_columns=len(headers))


def _untested(verdicts: list[Verdict], sources: list[str]) -> Table:
    rows = [[v.claim.says, f"({sources.index(v.claim.source) + 1})", v.reason] for v in verdicts]
    return Table(["claim", "source", "because"], rows, text_columns=3)
