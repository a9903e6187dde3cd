"""The decision: which arm to use under a user's limits, how sure that is, and what would make it surer.

The arms' scores, forgetting and costs are drawn jointly from what the runs show (`evidence_of`). Of the arms that meet
the limits, each with a probability of at least a half, the answer is the cheapest whose expected shortfall from the
best of them is within the tolerance. Sure is the share of draws in which that arm meets the limits and falls short of
the best that meets them there by no more than the tolerance. docs/statistics.md has the rules for every case.

    >>> decision = decide(load("results/reference"), limits_from_words(["memory_gib=24", "mergeable=yes"]))
    >>> decision.sentence, decision.sureness
    ('Use lora.', 0.65)
    >>> sureness_against(group, "memory_gib")[["value", "arm", "sureness"]]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.fairness import program_caveats
from bench.mistakes import ConfigurationError
from bench.stats.curves import forgetting_sentences
from bench.stats.evidence import COSTS, Evidence, evidence_of
from bench.stats.frames import Group, Sweep, groups
from bench.stats.limits import COLUMNS, Limits
from bench.stats.measures import Measure
from bench.stats.paired import Floats

TOLERANCE = 0.05  # of the best score
SURE = 0.95
TIE = 0.10  # costs that differ by less are alike
_MORE_SEEDS, _MORE_EXAMPLES = (0, 1, 2, 4, 7, 12, 17), (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True)
class Decision:
    """What to use.

    Attributes:
        arm: None where no arm meets the limits, or nothing can be said.
        sureness: 0..1; None without an arm or without a rival.
        sentence: the answer, for who reads no further; `reason`: why, with numbers.
        measure: of the score. `tolerance`: shortfall that does not matter, in its unit.
        arms: one row an arm but controls: arm, score, low, high (95%), qualifies (probability to meet the limits; NaN:
            unknown), expected_shortfall, probability_best, within (probability of a shortfall within the tolerance),
            peak_memory_bytes, train_seconds, checkpoint_bytes, cost_usd, forgetting (share of the suite's mean lost),
            chosen, why_not.
        cost_if_wrong: expected shortfall where it exceeds the tolerance, in the score's unit.
        to_be_sure: {"examples", "seeds", "minutes"}: test examples and seeds, both in all, that would make it 95% sure
            if the true scores are those seen, in the fewest further minutes; None where it is, or none within reach
            would. The same in words, a sentence: `surer`.
        caveats: what limits the answer, a sentence each.
    """

    arm: str | None
    sureness: float | None
    sentence: str
    reason: str
    tolerance: float
    arms: pd.DataFrame
    cost_if_wrong: float | None = None
    to_be_sure: dict[str, float | None] | None = None
    caveats: list[str] = field(default_factory=list)
    measure: Measure | None = None
    surer: str = ""


def decide(
    what: Group | Sweep, limits: Limits | None = None, tolerance: float | None = None, seed: int = 0
) -> Decision:
    """Which arm to use.

    Args:
        what: a group, or a sweep of one model, task and suite.
        tolerance: shortfall that does not matter, in the score's unit; None: the limits', else 5% of the best score.
        seed: of the draws; the same records and seed give the same decision.

    Raises:
        ValueError: when a sweep has several groups, or none.
        ConfigurationError: a tolerance as wide as the score's range.
    """
    if isinstance(what, Sweep):
        found = groups(what)
        if len(found) != 1:
            names = "; ".join(group.name for group in found) or "none"
            raise ValueError(f"decide() takes one model, task and suite; this sweep has {len(found)}: {names}. "
                             "Use [decide(group) for group in bench.stats.frames.groups(sweep)].")  # fmt: skip
        what = found[0]
    limits = limits or Limits()
    return _decision(what, limits if tolerance is None else replace(limits, quality_tolerance=tolerance), seed)


@lru_cache(maxsize=64)
def _decision(group: Group, limits: Limits, seed: int) -> Decision:
    evidence = evidence_of(group, limits.price_usd_per_hour, seed)
    if isinstance(evidence, str):
        arms = _unjudged(group, dict.fromkeys(group.arms["arm"], evidence))
        return Decision(None, None, "Nothing can be decided.", evidence, math.nan, arms)
    given, (low, high) = limits.quality_tolerance, evidence.measure.value_range
    if isinstance(given, float | int) and given > high - low:
        raise ConfigurationError([
            f"quality_tolerance={given:g}: {evidence.measure.name} goes from {low:g} to {high:g}, and all would be "
            f"within it; give less, or a share of the best score such as quality_tolerance={min(given, 100):g}%"
        ])  # fmt: skip
    choice = choose(evidence, limits)
    caveats = _caveats(group, evidence, choice)
    if limits.forgetting_tolerance is not None:
        caveats += forgetting_sentences(group, limits.forgetting_tolerance)
    found = partial(Decision, tolerance=choice.tolerance, arms=_arms_table(group, evidence, choice, limits),
                    caveats=caveats, measure=evidence.measure)  # fmt: skip
    arm = choice.name(evidence)
    if choice.arm is None or arm is None:
        misses = [_excess(evidence, limits, place) for place in range(len(evidence.arms))]
        nearest = min(range(len(misses)), key=lambda place: misses[place][0])
        reason = f"Nearest is {evidence.arms[nearest]}: it {misses[nearest][1]}."
        return found(None, None, "No method meets the limits.", reason)
    sentence = f"{'Do not tune: use' if evidence.free[choice.arm] else 'Use'} {arm}."
    if len(evidence.arms) == 1:
        return found(arm, None, sentence, f"Only {arm} was run and scored: it has no rival.")
    wrong = choice.shortfall[:, choice.arm][choice.shortfall[:, choice.arm] > choice.tolerance]
    found = partial(found, arm, choice.sureness, sentence, _reason(evidence, choice),
                    cost_if_wrong=float(wrong.mean()) if len(wrong) else None)  # fmt: skip
    if choice.sureness >= SURE:
        return found()
    more = _to_be_sure(evidence, limits)
    return found(to_be_sure=more, surer=_surer(evidence, arm, choice.tolerance, more))


def sureness_against(group: Group, limit: str, limits: Limits | None = None) -> pd.DataFrame:
    """The answer as a function of one limit, or of the tolerance: for the chart "What would change the answer".

    Args:
        limit: memory_gib, time_hours, cost_usd, forgetting_tolerance, or quality_tolerance (in the score's unit).
        limits: the others, held.

    Returns:
        limit, value (49 that span what the arms need), arm (None: no arm meets it), sureness; one row a value. Empty
        where the amount is unknown.
    """
    limits = limits or Limits()
    evidence = evidence_of(group, limits.price_usd_per_hour)
    rows = list[tuple[str, float, str | None, float]]()
    if not isinstance(evidence, str):
        for value in _values(evidence, limit):
            changed: dict[str, Any] = {limit: float(value)}
            choice = choose(evidence, replace(limits, **changed))
            rows.append((limit, value, choice.name(evidence), choice.sureness))
    return pd.DataFrame(rows, columns=["limit", "value", "arm", "sureness"])


def _values(evidence: Evidence, limit: str) -> Floats:
    """Values of a limit that span what the arms need, in its unit; none where that is unknown."""
    of_score = limit == "quality_tolerance"
    short = evidence.scores.max(axis=1, keepdims=True) - evidence.scores
    needs = (short if of_score else evidence.amounts[limit]).mean(axis=0) / (1.0 if of_score else COLUMNS[limit][1])
    needs = needs[np.isfinite(needs) & (needs > 0)]
    return np.linspace(0 if of_score else 0.8 * needs.min(), 1.2 * needs.max(), 49) if len(needs) else needs


# --- The rule ---


@dataclass(frozen=True)
class Choice:
    """`qualifies`: probability by arm, NaN unknown; `meets`: by draw and arm; `shortfall`: from the best of those that
    qualify, by draw and arm; `expected`: its mean. `arm`: place of the chosen one; `cheap`: of those as cheap."""

    arm: int | None
    tolerance: float
    qualifies: Floats
    meets: NDArray[np.bool_]
    shortfall: Floats
    expected: Floats
    cheap: list[int]
    sureness: float = math.nan

    def name(self, evidence: Evidence) -> str | None:
        """Of the chosen arm."""
        return None if self.arm is None else evidence.arms[self.arm]


def choose(evidence: Evidence, limits: Limits) -> Choice:
    """Apply the rule of the module's docstring."""
    qualifies, meets = _meets(evidence, limits)
    eligible = np.flatnonzero(np.nan_to_num(qualifies) >= 0.5)
    pool = eligible if len(eligible) else np.arange(len(evidence.arms))
    shortfall = np.maximum(evidence.scores[:, pool].max(axis=1, keepdims=True) - evidence.scores, 0.0)
    expected = shortfall.mean(axis=0)
    given, best = limits.quality_tolerance, abs(float(evidence.means[pool].max()))
    if given is None:
        tolerance = max(TOLERANCE * best, evidence.floor)
    else:
        tolerance = best * float(given.removesuffix("%")) / 100 if isinstance(given, str) else float(given)
    if not len(eligible):
        return Choice(None, tolerance, qualifies, meets, shortfall, expected, [])
    close = [int(i) for i in eligible if expected[i] <= tolerance] or [int(eligible[expected[eligible].argmin()])]
    cheap = _cheapest(evidence, close)
    arm = min(cheap, key=lambda i: expected[i])
    # The rivals of a draw are the arms that meet the limits in it, and those of which that is not known.
    rivals = np.where(meets | np.isnan(qualifies), evidence.scores, -np.inf).max(axis=1)
    sureness = float((meets[:, arm] & (rivals - evidence.scores[:, arm] <= tolerance)).mean())
    return Choice(arm, tolerance, qualifies, meets, shortfall, expected, cheap, sureness)


def _meets(evidence: Evidence, limits: Limits) -> tuple[Floats, NDArray[np.bool_]]:
    """Probability to meet all limits by arm, NaN where an amount is unknown; whether they are met, by draw and arm."""
    possible = np.ones(evidence.scores.shape, dtype=bool)  # met, as far as the amounts are known
    unknown = np.zeros(len(evidence.arms), dtype=bool)
    for name, most in limits.amounts().items():
        drawn = evidence.amounts[name]
        unknown |= np.isnan(drawn).any(axis=0)
        possible &= ~(drawn > most)
    unknown &= possible.any(axis=0)  # one limit that is certainly missed decides, whatever is unknown beside it
    return np.where(unknown, np.nan, possible.mean(axis=0)), possible & ~unknown


def _cheapest(evidence: Evidence, among: list[int]) -> list[int]:
    """The arms that cost alike: within a tenth, or the noise, of the least memory, then of the least time and bytes."""
    limit_of = {column: limit for limit, (column, _) in COLUMNS.items()}
    for column in ("peak_memory_bytes", "train_seconds", "checkpoint_bytes"):
        amount = np.where(evidence.free, 0.0, evidence.costs[column])
        known = [i for i in among if math.isfinite(amount[i])]
        if known:
            least = min(known, key=lambda i: amount[i])
            alike = amount <= amount[least] * (1 + TIE)
            if column in limit_of and not alike[known].all():
                drawn = evidence.amounts[limit_of[column]]
                variance = drawn.var(axis=0) / (evidence.known.seeds + 1)  # draws are of a next run: error of a mean
                means = drawn.mean(axis=0)
                alike |= abs(means - means[least]) <= 2 * np.sqrt(variance + variance[least])
            among = [i for i in known if alike[i]]
    return among


def _to_be_sure(evidence: Evidence, limits: Limits) -> dict[str, float | None] | None:
    """The cheapest numbers of seeds and examples that would make the answer 95% sure, were the scores seen the true.

    The errors of the draws shrink as the variance of a difference of two arms would.
    """
    known, trained = evidence.known, np.array(evidence.trained)
    seeds = int(known.seeds[trained].min()) if trained.any() else 1
    errors = evidence.scores - evidence.scores.mean(axis=0)
    plans = list(itertools.product(_MORE_SEEDS, _MORE_EXAMPLES))[1:]
    for more, factor in sorted(plans, key=lambda p: (evidence.seconds(*p), p[0] + p[1])):
        shrunk = math.sqrt(evidence.variance(more, factor) / evidence.variance(0, 1))
        if choose(replace(evidence, scores=evidence.means + shrunk * errors), limits).sureness >= SURE:
            minutes = evidence.seconds(more, factor) / 60 or None  # 0: no stage's time is known
            return {"examples": math.ceil(known.examples * factor), "seeds": seeds + more, "minutes": minutes}
    return None


# --- Words and tables ---


def _arms_table(group: Group, evidence: Evidence, choice: Choice, limits: Limits) -> pd.DataFrame:
    places, known = range(len(evidence.arms)), evidence.known
    low, high = zip(*(known.of(place).interval() for place in places), strict=True)
    frame = pd.DataFrame({
        "arm": evidence.arms, "score": known.mean, "low": low, "high": high,
        "qualifies": choice.qualifies, "expected_shortfall": choice.expected,
        "probability_best": (evidence.scores == evidence.scores.max(axis=1, keepdims=True)).mean(axis=0),
        "within": (choice.shortfall <= choice.tolerance).mean(axis=0),
        **evidence.costs[list(COSTS)].reset_index(drop=True),
        "forgetting": evidence.amounts["forgetting_tolerance"].mean(axis=0),
        "chosen": [place == choice.arm for place in places],
        "why_not": ["" if place == choice.arm else _why_not(evidence, choice, limits, place) for place in places],
    })  # fmt: skip
    return pd.concat([frame, _unjudged(group, evidence.out)], ignore_index=True)


def _unjudged(group: Group, why: Mapping[str, str]) -> pd.DataFrame:
    """Rows of the arms without a judgement, but controls."""
    arms = group.arms[group.arms["arm"].isin(list(why)) & ~group.arms["control"].astype(bool)]
    empty = ["low", "high", "qualifies", "expected_shortfall", "probability_best", "within", "forgetting"]
    columns = ["arm", "score", *COSTS, *empty]
    return arms.reindex(columns=columns).assign(chosen=False, why_not=arms["arm"].map(why))


def _why_not(evidence: Evidence, choice: Choice, limits: Limits, place: int) -> str:
    """Why an arm is not the answer, as a clause."""
    if not choice.qualifies[place] >= 0.5:
        return _excess(evidence, limits, place)[1]
    if choice.expected[place] > choice.tolerance:
        return f"expected to fall {choice.expected[place]:.3f} short of the best"
    return "costs as much, and its score is lower" if place in choice.cheap else "costs more"


def _excess(evidence: Evidence, limits: Limits, place: int) -> tuple[float, str]:
    """By how much an arm misses the limits, relative to them, and the worst of its misses as a clause."""
    misses = [(0.0, "probably misses the limits together")]
    lacks = {"mergeable": "cannot be merged", "adapters": "needs a whole model a task"}
    units = {f.name: f.metadata["unit"] for f in fields(Limits)}
    for name, most in limits.amounts().items():
        needed = float(np.median(evidence.amounts[name][:, place]))
        if math.isnan(needed):
            text = "how it scores when merged was not measured" if name in lacks else f"{name}: not measured"
            misses.append((math.inf, text))
        elif needed > most:
            unit = COLUMNS.get(name, ("", 1.0))[1]
            text = f"needs {needed / unit:.2f} {units[name]} where {most / unit:g} are allowed"
            misses.append((needed / max(most, 1e-9) - 1, lacks.get(name, text)))
    return max(misses)


def _reason(evidence: Evidence, choice: Choice) -> str:
    assert choice.arm is not None
    score, short = f"Its {evidence.measure.name} of {evidence.known.mean[choice.arm]:.3f}", choice.expected[choice.arm]
    beside = ", of those that meet the limits" if np.nan_to_num(choice.qualifies).min() < 0.5 else ""
    within = f"{'within' if short <= choice.tolerance else 'more than'} the tolerance of {choice.tolerance:.3f}"
    return f"{score} is expected to fall {short:.3f} short of the best{beside}, {within}."


def _surer(evidence: Evidence, arm: str, tolerance: float, more: dict[str, float | None] | None) -> str:
    """What would make the answer 95% sure, or why nothing within reach would."""
    other = "Whether two methods differ at all is another question, which may take fewer (Quality: examples to settle)."
    if more is not None:
        time = "" if more["minutes"] is None else f" (about {more['minutes']:,.0f} minutes more)"
        need = f"About {more['examples']:,} test examples and {more['seeds']} seeds in all{time}"
        return f"{need} would make the answer 95% sure. {other}"
    examples, seeds = evidence.known.examples * _MORE_EXAMPLES[-1], int(evidence.known.seeds.max()) + _MORE_SEEDS[-1]
    return (f"Not even {examples:,} test examples and {seeds} seeds would make it 95% sure that {arm} falls short by "
            f"no more than {tolerance:.3f}: what was seen lies too close to that. {other}")  # fmt: skip


def _caveats(group: Group, evidence: Evidence, choice: Choice) -> list[str]:
    caveats = [*group.sweep.said]
    single = [arm for arm, seeds, trained in zip(evidence.arms, evidence.known.seeds, evidence.trained, strict=True)
              if seeds == 1 and trained]  # fmt: skip
    if single:
        caveats.append(f"One seed of {', '.join(single)}: another seed may turn the order; the sureness counts that in "
                       "by what seeds usually change.")  # fmt: skip
    if evidence.known.examples < 100:
        caveats.append(f"Only {evidence.known.examples} test examples.")
    if choice.arm is not None:
        lost = 100 * evidence.amounts["forgetting_tolerance"][:, choice.arm]
        low, high = np.percentile(lost, (2.5, 97.5))
        if low > 0:
            caveats.append(f"{evidence.arms[choice.arm]} forgot: the regression suite's mean lost {lost.mean():.1f} "
                           f"points [{low:.1f}, {high:.1f}] against the base.")  # fmt: skip
    caveats += program_caveats({arm: group.by_arm[arm] for arm in evidence.arms})
    caveats += [f"{arm}: {why}." for arm, why in evidence.out.items()]
    failed = group.arms[(group.arms["failed"] > 0) & group.arms["arm"].isin(evidence.arms)]
    return caveats + [f"{row.arm}: {row.failed} of its {row.runs} runs failed." for row in failed.itertuples()]
