"""Public claims about the methods as data, judged by a group's runs, or by the planner where the runs cannot tell.

`conf/claims/*.yaml`, one file a source:

    source: "Our vendor's guide, page 4"
    claims:
      - id: vendor-speed              # lower-case letters, digits and hyphens; one of a kind
        says: QLoRA is at most 10% slower than LoRA.
        checks:                       # all must hold; each bounds one expression
          - tokens_per_second(qlora) / tokens_per_second(lora) >= 0.9
        reading: ...                  # how a vague word is read, and what is left out (optional, as all below)
        contradicts: [speed-qlora-30-50]        # ids of claims that cannot be true beside this one; one side is enough
        parameters: [6.5e9, 7.5e9]    # of the base model that the claim is about; null for an open end
        at_equal: parameters_trainable          # the arms must agree in this quantity to 5%; or memory_budget_gib
        planner: [model=mistral-7b, hardware=a100]    # what the planner is asked where the runs cannot tell

An expression is arithmetic (+ - * /) over numbers and `QUANTITIES` of arms, `quantity(arm)`. An arm is full, lora,
qlora, trained (these three), base or base_4bit: by what is trained and how the base is kept, not by a method's name.
`lora(rank=8, target_modules=["q_proj", "v_proj"])` asks for settings; `rank=[128, None]` is a range. LoRA means LoRA as
it was published: without DoRA and the like. In all settings that none of them names the arms must agree.

Every quantity is drawn from what the runs show: scores by the engine of the decision (`paired.draws`), amounts by
`amount_draws`; counts are exact. A claim holds when its checks are true in at least 95% of the joint draws, does not
hold in at most 5%, and is not settled between. Each claim is a question of its own: nothing is adjusted for their
number.

    >>> verdicts = judge(group, read_claims())
    >>> verdicts[0].claim.id, verdicts[0].word, verdicts[0].probability
    ('mem-order', 'not settled', 0.74)
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from bench.compose import CONFIG_FOLDER, with_settings
from bench.config import suggest
from bench.mistakes import ConfigurationError, all_of, checked
from bench.planner.advice import MARGIN, plan_of, planned_runs, preset
from bench.stats.evidence import DRAWS
from bench.stats.frames import Group
from bench.stats.paired import Floats
from bench.stats.quantities import (
    ARMS,
    COUNTS,
    OF_ALL_RUNS,
    QUANTITIES,
    SETTINGS,
    Arm,
    Drawn,
    Need,
    NotMeasuredError,
    drawn,
    sets,
)

CLAIMS_FOLDER = CONFIG_FOLDER / "claims"
LONGEST = 300  # characters of a check
HOLDS, FAILS = 0.95, 0.05  # shares of the draws
_STRICT = ConfigDict(extra="forbid")
Word = Literal["holds", "does not hold", "not settled", "not tested"]


# --- Reading ---


def _known_quantity(name: str) -> str:
    allowed = ["memory_budget_gib", *COUNTS]
    if name not in allowed:
        raise ValueError(f"no quantity {name!r}{suggest(name, allowed)}")
    return name


@checked_dataclass(frozen=True, config=_STRICT)
class Claim:
    """One statement, in our words; the keys are explained above."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    says: str
    checks: Annotated[list[Annotated[str, AfterValidator(lambda text: parse(text).text)]], Field(min_length=1)]
    reading: str = ""
    contradicts: list[str] = field(default_factory=list)
    parameters: tuple[float | None, float | None] | None = None
    at_equal: Annotated[str, AfterValidator(_known_quantity)] | None = None
    planner: list[str] = field(default_factory=list)
    source: str = ""  # that of the file, where the claim has none of its own


@checked_dataclass(frozen=True, config=_STRICT)
class ClaimFile:
    """The claims of one source."""

    source: str  # its title, as a person would look it up
    claims: list[dict[str, Any]]  # of `Claim`


def read_claims(folder: Path = CLAIMS_FOLDER) -> list[Claim]:
    """Every claim of the folder's `*.yaml`, by file name and in the order of the file.

    Raises:
        ConfigurationError: with every mistake of every file.
    """
    found = all_of(*(partial(_claims_of, path) for path in sorted(folder.glob("*.yaml"))))
    claims: list[Claim] = list(itertools.chain(*found))
    ids = Counter(claim.id for claim in claims)
    problems = [f"{name}: two claims have this id; give each its own" for name, count in ids.items() if count > 1]
    problems += [f"{claim.id}.contradicts: no claim {other!r}{suggest(other, [*ids])}"
                 for claim in claims for other in claim.contradicts if other not in ids]  # fmt: skip
    if problems:
        raise ConfigurationError(problems)
    return claims


def _claims_of(path: Path) -> list[Claim]:
    """The claims of one file."""
    try:
        read = checked(ClaimFile, yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path.name}: not YAML ({' '.join(str(error).split())})"]) from None
    names = [f"{path.name}: {claim.get('id', f'claims.{place}')}" for place, claim in enumerate(read.claims)]
    pairs = zip(read.claims, names, strict=True)
    return all_of(*(partial(checked, Claim, {"source": read.source} | claim, name) for claim, name in pairs))


@dataclass(frozen=True)
class Check:
    """A comparison of one expression with numbers.

    Attributes:
        needs: name in the expression -> the quantity of an arm that it stands for.
        expression, comparison: of these names, as pandas evaluates them.
    """

    text: str
    needs: dict[str, Need]
    expression: str
    comparison: str

    def evaluate(self, known: Mapping[Need, Any]) -> tuple[Floats, NDArray[np.bool_]]:
        """The expression, and whether the comparison is true, by draw; from arrays of one length."""
        frame = pd.DataFrame({name: known[need] for name, need in self.needs.items()})
        return np.asarray(frame.eval(self.expression)), np.asarray(frame.eval(self.comparison))


_NEED = re.compile(r"(\w+)\((\w+)(?:\(([^()]*)\))?\)")  # quantity(arm), or quantity(arm(setting=value, ...))
_PLAIN = r"\d+\.?\d*(?:e[-+]?\d+)?|[<>]=?|[-+() ]|\*(?!\*)|/(?!/)"  # what else an expression may hold


@lru_cache(maxsize=256)
def parse(text: str) -> Check:
    """A check from its text.

    Raises:
        ValueError: what is not allowed, and what is.
    """
    if len(text) > LONGEST:  # what is nested deeper than Python can follow is longer
        raise ValueError(f"it has {len(text)} characters; at most {LONGEST} are allowed")
    needs: dict[str, Need] = {}

    def named(found: re.Match[str]) -> str:
        need = found[1], _arm(found[1], found[2], found[3] or "")
        name = next((name for name, other in needs.items() if other == need), f"q{len(needs)}")
        needs[name] = need
        return name

    try:
        comparison = _NEED.sub(named, text)
        ast.parse(comparison, mode="eval")
    except SyntaxError:
        raise ValueError("not an expression, such as 0.3 <= score(qlora) / score(lora) <= 0.5") from None
    if stranger := re.sub(_PLAIN, "", _NEED.sub("1", text)):
        raise ValueError(f"{stranger!r} is not allowed; use numbers, + - * /, < <= > >= and quantity(arm)")
    sides = re.split("[<>]=?", comparison)
    if len(sides) == 1:
        raise ValueError("a check compares an expression with numbers by <, <=, > or >=")
    varying = [side.strip() for side in sides if "q" in side]
    if len(varying) != 1:
        raise ValueError(f"{len(varying)} sides of the comparison name arms; exactly one may, beside plain numbers")
    return Check(text, needs, varying[0], comparison)


def _arm(quantity: str, family: str, settings: str) -> Arm:
    call = ast.parse(f"_({settings})", mode="eval").body
    asked = {str(keyword.arg): keyword.value for keyword in call.keywords} if isinstance(call, ast.Call) else {}
    named = [("quantity", quantity, QUANTITIES), ("arm", family, ARMS)]
    for word, given, allowed in [*named, *(("setting", name, tuple(SETTINGS)) for name in asked)]:
        if given not in allowed:
            raise ValueError(f"no {word} {given!r}{suggest(given, list(allowed))}")
    values = {name: ast.literal_eval(value) for name, value in asked.items()}
    return Arm(family, tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in values.items()))


# --- Judging ---


@dataclass(frozen=True)
class Part:
    """One check on one set of arms.

    Attributes:
        arms: their names in the report.
        value: of the expression; `low`, `high`: 95% of its draws; NaN where not tested.
        probability: share of the draws in which the check is true; NaN where not tested.
        basis: what it rests on, or why it was not tested.
        truth: of the check, by draw; None where not tested.
    """

    check: str
    arms: tuple[str, ...] = ()
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    probability: float = np.nan
    basis: str = ""
    truth: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Verdict:
    """A claim with what is known of it. `predicted`: by the planner; `reason`: of one not settled or not tested."""

    claim: Claim
    word: Word
    reason: str
    probability: float
    parts: list[Part]
    predicted: bool = False


def judge(group: Group, claims: Sequence[Claim]) -> list[Verdict]:
    """One verdict a claim, in the order given; the same records give the same verdicts."""
    verdicts = []
    for claim in claims:
        rng, unmet = np.random.default_rng(0), _unmet(claim, group)
        by_check = [
            [Part(text, basis=unmet)] if unmet else _by_runs(group, parse(text), claim, rng) for text in claim.checks
        ]
        verdict = _worded(claim, by_check)
        verdicts.append(predicted(claim) if verdict.word == "not tested" and claim.planner else verdict)
    return verdicts


def predicted(claim: Claim) -> Verdict:
    """The claim judged by the planner alone."""
    rng = np.random.default_rng(0)
    return replace(_worded(claim, [[_by_planner(parse(text), claim, rng)] for text in claim.checks]), predicted=True)


def _worded(claim: Claim, by_check: Sequence[Sequence[Part]]) -> Verdict:
    """All checks must hold, on every set of arms; one that does not decides, whatever could not be tested."""
    parts = [part for found in by_check for part in found]
    truths = [part.truth for part in parts if part.truth is not None]
    probability = float(np.logical_and.reduce(truths).mean()) if truths else np.nan
    likely = [[part.probability for part in found if part.truth is not None] for found in by_check]
    if any(found and min(found) <= FAILS and max(found) >= HOLDS for found in likely):
        return Verdict(claim, "not settled", "it depends on the settings", probability, parts)
    if truths and probability <= FAILS:
        return Verdict(claim, "does not hold", "", probability, parts)
    if not all(likely):
        reasons = dict.fromkeys(part.basis for part in parts if part.truth is None)
        return Verdict(claim, "not tested", "; ".join(reasons), np.nan, parts)
    if probability >= HOLDS:
        return Verdict(claim, "holds", "", probability, parts)
    return Verdict(claim, "not settled", f"true with a probability of {probability:.0%}", probability, parts)


def _unmet(claim: Claim, group: Group) -> str:
    """Why the group's model is not the one that the claim is about; empty when it is."""
    if claim.parameters is None:
        return ""
    counts = [count for record in group.records if (count := record.config.model.parameters) is not None]
    counts += [run.train.parameters_total for run in group.records if run.train and not run.config.method.adapter]
    low, high = claim.parameters
    if counts and (low or 0) <= counts[0] <= (high or np.inf):
        return ""
    wanted = " to ".join(f"{end / 1e9:g}" for end in claim.parameters if end is not None)
    has = f"{group.records[0].model} has {counts[0] / 1e9:.3g}" if counts else "the records do not tell how many"
    return f"about a model of {wanted} billion parameters; {has}"


# --- By the runs ---


def _by_runs(group: Group, check: Check, claim: Claim, rng: np.random.Generator) -> list[Part]:
    """The check on every set of arms that it is about."""
    needs = check.needs.values()
    arms, names = list(dict.fromkeys(arm for _, arm in needs)), list(dict.fromkeys(name for name, _ in needs))
    found: list[Part] = []
    try:
        if set(names) <= OF_ALL_RUNS.keys():
            known = {(name, arm): OF_ALL_RUNS[name](group, arm, rng) for name, arm in needs}
            return [_judged(check, tuple(map(str, arms)), known)]
        for labels, runs in sets(group, arms, claim.at_equal):
            known = {}
            for name in names:
                wanted = [arm for arm in arms if (name, arm) in needs]
                found_draws = drawn(group, name, [runs[arm] for arm in wanted], rng, claim.at_equal)
                known |= {(name, arm): one for arm, one in zip(wanted, found_draws, strict=True)}
            found.append(_judged(check, labels, known))
    except NotMeasuredError as error:
        found.append(Part(check.text, tuple(map(str, arms)), basis=str(error)))
    return found


def _judged(check: Check, arms: tuple[str, ...], known: Mapping[Need, Drawn]) -> Part:
    basis = "; ".join(dict.fromkeys(basis for _, _, basis in known.values()))
    value = float(check.evaluate({need: [one] for need, (one, _, _) in known.items()})[0][0])
    if not np.isfinite(value):
        return Part(check.text, arms, basis=f"it would divide by 0 ({basis})")
    values, truth = check.evaluate({need: sampled for need, (_, sampled, _) in known.items()})
    with np.errstate(invalid="ignore"):  # between two infinite draws
        low, high = np.nanquantile(values, (0.025, 0.975))
    return Part(check.text, arms, value, float(low), float(high), float(truth.mean()), basis, truth)


# --- By the planner ---


def _by_planner(check: Check, claim: Claim, rng: np.random.Generator) -> Part:
    """Memory is right to about a tenth; time and cost lie where published runs do, alike for all arms."""
    share = rng.uniform(size=DRAWS)
    known: dict[Need, Drawn] = {}
    labels = tuple(dict.fromkeys(str(arm) for _, arm in check.needs.values()))
    for name, arm in check.needs.values():
        try:
            columns = _planned(tuple(claim.planner), arm)
        except ConfigurationError as error:
            raise ConfigurationError([f"{claim.id}.planner: {text}" for text in error.problems]) from None
        value, basis = columns.get(name), "the planner"
        if value is None:
            return Part(check.text, labels, basis=f"the planner knows no {name}")
        if isinstance(value, tuple):  # (low, high); what is fast is cheap
            low, high = value[::-1] if name == "tokens_per_second" else value
            known[name, arm] = float(np.sqrt(low * high)), low * (high / low) ** share, basis
        else:
            scatter = MARGIN / 2 * rng.standard_normal(DRAWS) if name == "peak_memory_bytes" else np.zeros(DRAWS)
            known[name, arm] = float(value), value * np.exp(scatter), basis
    return _judged(check, labels, known)


@lru_cache(maxsize=64)
def _planned(overrides: tuple[str, ...], arm: Arm) -> dict[str, Any]:
    """`Plan.columns` of what the overrides describe, trained by the arm's method."""
    ((config, options, machine),) = _planned_runs(overrides)
    asked = {SETTINGS[name]: list(v) if isinstance(v, tuple) else v for name, v in arm.settings}
    config = with_settings(replace(config, method=preset(arm.family)), asked)
    return plan_of(config, options, machine).columns()


_planned_runs = lru_cache(maxsize=16)(planned_runs)
