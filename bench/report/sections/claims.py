"""Public claims about the methods, judged by these runs, or by the planner where they cannot tell.

>>> section(group).lead
'36 claims: 4 hold, 8 do not hold, 6 are not settled, 18 were not tested.'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd

from bench.mistakes import ConfigurationError
from bench.report.section import Section, Table, interval, percent
from bench.stats.claims import Verdict, Word, judge, read_claims
from bench.stats.frames import Group
from bench.stats.rates import listed

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
def verdicts_of(group: Group) -> tuple[list[Verdict], str]:
    """(every known claim judged, why none could be); without a reason none is known, or nothing was trained."""
    if group.arms["untrained"].all():
        return [], ""
    try:
        return judge(group, read_claims()), ""
    except ConfigurationError as error:
        return [], f"Not judged, since the files of claims have mistakes: {'; '.join(error.problems)}."


def verdicts_frame(group: Group) -> pd.DataFrame:
    """One row a check and set of arms."""
    return pd.DataFrame([
        {"claim": found.claim.id, "says": found.claim.says, "source": found.claim.source, "verdict": found.word,
         "predicted": found.predicted, "probability": found.probability, "reason": found.reason, "check": part.check,
         "arms": ", ".join(part.arms), "value": part.value, "low": part.low, "high": part.high, "basis": part.basis}
        for found in verdicts_of(group)[0]
        for part in found.parts
    ])  # fmt: skip


def section(group: Group) -> Section | None:
    """None when nothing was trained, or no claim is known."""
    verdicts, problem = verdicts_of(group)
    if not verdicts:
        return Section("Claims", lead=problem) if problem else None
    counts = Counter(verdict.word for verdict in verdicts)
    said = [f"{counts[word]} {words[counts[word] != 1]}" for word, words in _WORDS.items() if counts[word]]
    sources = list(dict.fromkeys(verdict.claim.source for verdict in verdicts))
    tested = [verdict for verdict in verdicts if verdict.word != "not tested"]
    rows = [[found.claim.says, f"({sources.index(found.claim.source) + 1})", found.reason]
            for found in verdicts if found.word == "not tested"]  # fmt: skip
    untested = Table(["claim", "source", "because"], rows, text_columns=3)
    tables = {"Judged claims": _judged(side_by_side(tested), sources), "Not tested": untested}
    parts = [Section(title, table=table, fold=True) for title, table in tables.items() if table.rows]
    note = _NOTE + " ".join(f"({place}) {source}" for place, source in enumerate(sources, 1))
    lead = f"{len(verdicts)} public claims: {listed(said)}."
    items = [f"Does not hold{_marked(found)}: {found.claim.says}" for found in tested if found.word == "does not hold"]
    return Section("Claims", lead=lead, items=items, note=note, parts=parts)


def _marked(verdict: Verdict) -> str:
    return " (predicted)" if verdict.predicted else ""


def side_by_side(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that contradict one another next to one another; the others in the order given."""
    known = {verdict.claim.id: verdict for verdict in verdicts}
    pairs = [(found.claim.id, other) for found in verdicts for other in found.claim.contradicts if other in known]
    opposed = {name: [pair[name == pair[0]] for pair in pairs if name in pair] for name in known}
    return [known[name] for name in dict.fromkeys(name for own in known for name in (own, *opposed[own]))]


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
