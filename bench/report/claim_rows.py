"""Verdicts on public claims as rows of a table for programs: one a claim, check and pair of arms.

>>> pd.DataFrame(claims_rows(group.name, verdicts)).to_csv("tables/claims.csv")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.analysis.claims import Part, Verdict
from bench.analysis.measured import Interval
from bench.report.claims import expected_text


def claims_rows(group: str, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """One row a claim, check and pair of arms, for `tables/claims.csv`."""
    return [row for verdict in verdicts for row in _rows(group, verdict)]


def _rows(group: str, verdict: Verdict) -> list[dict[str, Any]]:
    claim = verdict.claim
    told = {
        "group": group, "claim": claim.id, "says": claim.says, "source": claim.source, "verdict": verdict.word,
        "reason": verdict.reason, "reading": claim.reading, "contradicts": ", ".join(claim.contradicts),
    }  # fmt: skip
    return [told | _part_row(part) for part in verdict.parts] or [told]


def _part_row(part: Part) -> dict[str, Any]:
    measured, interval = part.measured, part.measured.interval if part.measured else None
    ends: Interval | tuple[None, None] = interval or (None, None)
    return {
        "quantity": part.check.quantity, "form": part.check.form, "of": part.arms[0],
        "against": part.arms[1] if len(part.arms) > 1 else None, "expected": expected_text(part.check),
        "by": part.check.by, "value": measured.value if measured else None, "text": part.text, "low": ends[0],
        "high": ends[1], "rests_on": measured.basis if measured else None, "part_verdict": part.word,
        "part_reason": part.reason,
    }  # fmt: skip
