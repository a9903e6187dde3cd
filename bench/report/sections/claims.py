"""Public claims about the methods, judged by these runs, or by the planner where they cannot tell.

>>> section(group).lead
'36 public claims: 4 hold, 8 do not hold, 6 are not settled, 18 were not tested.'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

import pandas as pd

from bench.mistakes import ConfigurationError
from bench.report.section import Column, Section, interval, percent, table_of
from bench.stats.claims import Verdict, Word, judge, read_claims
from bench.stats.frames import Group

_NOTE = (
    "Each claim is an expression over what was measured, drawn as for the answer: it holds when it is true in at least "
    "95% of the draws, does not hold in at most 5%. Predicted: judged by the planner, as these runs are of another "
    "model. Each claim is a question of its own: nothing is adjusted for their number. Verdicts are about this model, "
    "task and machine. Sources: "
)
_MANY = ("hold", "do not hold", "are not settled", "were not tested")  # of `Word`


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
         "arms": ", ".join(part.arms), "value": part.value, "low": part.low, "high": part.high, "basis": part.basis,
         "reading": found.claim.reading}
        for found in side_by_side(verdicts_of(group)[0]) for part in found.parts
    ])  # fmt: skip


def side_by_side(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that contradict one another next to one another; the others in the order given."""
    known = {verdict.claim.id: verdict for verdict in verdicts}
    pairs = [(found.claim.id, other) for found in verdicts for other in found.claim.contradicts if other in known]
    opposed = {name: [pair[name == pair[0]] for pair in pairs if name in pair] for name in known}
    return [known[name] for name in dict.fromkeys(name for own in known for name in (own, *opposed[own]))]


def section(group: Group) -> Section | None:
    """None when nothing was trained, or no claim is known."""
    verdicts, problem = verdicts_of(group)
    if not verdicts:
        return Section("Claims", lead=problem) if problem else None
    frame, counts = verdicts_frame(group), Counter(verdict.word for verdict in verdicts)
    told = ", ".join(f"{counts[word]} {many}" for word, many in zip(get_args(Word), _MANY, strict=True))
    lead = f"{len(verdicts)} public claims: {told}."
    items = [f"Does not hold{' (predicted)' * found.predicted}: {found.claim.says}"
             for found in verdicts if found.word == "does not hold"]  # fmt: skip
    sources = list(dict.fromkeys(verdict.claim.source for verdict in verdicts))
    claim: list[Column] = [("claim", str, "says"), ("source", lambda name: f"({sources.index(name) + 1})", "source")]
    columns: list[Column] = [
        *claim,
        ("verdict", lambda word, predicted: word + " (predicted)" * predicted, "verdict", "predicted"),
        ("true in", percent, "probability"),
        ("check", str, "check"),
        ("measured [95%]", interval, "value", "low", "high"),
        ("basis", str, "basis"),
        ("remark", lambda *texts: " ".join(filter(None, texts)), "reason", "reading"),
    ]
    untested = frame["verdict"] == "not tested"
    because = table_of(frame[untested].drop_duplicates("claim"), [*claim, ("because", str, "reason")], 3)
    tables = {"Judged claims": table_of(frame[~untested], columns, len(columns)), "Not tested": because}
    parts = [Section(title, table=table, fold=True) for title, table in tables.items() if table.rows]
    note = _NOTE + " ".join(f"({place}) {source}" for place, source in enumerate(sources, 1))
    return Section("Claims", lead=lead, items=items, note=note, parts=parts)
