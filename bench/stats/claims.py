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
qlora, base or base_4bit: selected by what is trained and how the base is kept, never by a method's name.
`lora(rank=8, target_modules=["q_proj", "v_proj"])` asks for settings; `rank=[128, None]` is a range. LoRA means LoRA as
it was published: without DoRA and the like. In all settings that none of them names the arms must agree.

Every quantity is drawn from what the runs show: scores by the engine of the decision (`paired.draws`), amounts by
`decide.amount_draws`; counts are exact. A claim holds when its checks are true in at least 95% of the joint draws, does
not hold in at most 5%, and is not settled between. Each claim is a question of its own: nothing is adjusted for their
number.

    >>> verdicts = judge(group, read_claims())
    >>> verdicts[0].claim.id, verdicts[0].word, verdicts[0].probability
    ('mem-order', 'not settled', 0.74)
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from bench.compose import CONFIG_FOLDER
from bench.config import ConfigurationError, MethodConfig, suggest, with_settings
from bench.metrics import METRICS
from bench.planner.advice import MARGIN, plan_of, planned_runs, preset
from bench.record import Record
from bench.stats.compare import match, speed_doubts
from bench.stats.curves import reach_frame
from bench.stats.decide import DRAWS, amount_draws
from bench.stats.frames import Group, family, is_control, is_untrained
from bench.stats.measures import SUITE_MEAN, means_of, measure_tables
from bench.stats.paired import FEWEST_EXAMPLES, Floats, Means, draws, means
from bench.stats.rates import best_of_rates, optimum_cell, optimum_draws, tried
from bench.stats.serving import SERVED, NotMeasuredError, served_draws

CLAIMS_FOLDER = CONFIG_FOLDER / "claims"
HOLDS, FAILS = 0.95, 0.05  # shares of the draws
SAME = 0.05  # arms agree in a quantity that differs by less
SPIKE_FACTOR, SPIKE_WINDOW = 3.0, 10  # a gradient norm above so many times the median of so many steps before
INSTRUCTION_TASKS = ("instructions", "ifeval")  # of the regression suite
ARMS = ("base", "base_4bit", "full", "lora", "qlora")
# Quantities: of examples or steps; one number a run (columns of the runs frame); of these counts, which are exact.
EXAMPLES = ("score", *(f"score_{metric}" for metric in METRICS), "test_loss", "regression_mean",
            "instruction_following", "gradient_spike_share")  # fmt: skip
AMOUNTS = ("peak_memory_bytes", "tokens_per_second", "train_seconds", "seconds_to_target", "cost_usd", "energy_wh")
COUNTS = ("parameters_total", "parameters_trainable", "parameters_quantized", "trainable_share", "checkpoint_bytes",
          "weights_bytes", "gradients_bytes", "optimizer_bytes")  # fmt: skip
QUANTITIES = (*EXAMPLES, *AMOUNTS, *COUNTS, *SERVED, "best_learning_rate")
_SETTINGS = {"rank": "adapter.rank", "target_modules": "adapter.target_modules", "scheme": "quantization.scheme",
             "double_quantization": "quantization.double_quantization", "weights_dtype": "weights_dtype"}  # fmt: skip
_PUBLISHED = {"adapter.use_dora": False, "adapter.use_rslora": False, "adapter.init": "default"}  # LoRA, not a variant
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_STRICT = ConfigDict(extra="forbid")
Word = Literal["holds", "does not hold", "not settled", "not tested"]
Need = tuple[str, "Arm"]  # a quantity of an arm
Drawn = tuple[float, Floats, str]  # its value, its draws, what they rest on
Runs = dict["Arm", list[Record]]
Formula = Callable[[Mapping[Need, Any]], Any]


# --- Reading ---


@checked_dataclass(frozen=True, config=_STRICT)
class Claim:
    """One statement, in our words; the keys are explained above."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    says: str
    checks: Annotated[list[str], Field(min_length=1)]
    reading: str = ""
    contradicts: list[str] = field(default_factory=list)
    parameters: tuple[float | None, float | None] | None = None
    at_equal: str | None = None
    planner: list[str] = field(default_factory=list)
    source: str = ""  # empty: that of the file


@checked_dataclass(frozen=True, config=_STRICT)
class ClaimFile:
    """The claims of one source."""

    source: str  # its title, as a person would look it up
    claims: list[Claim]


@dataclass(frozen=True)
class Arm:
    """Runs by what is trained and how the base is kept, and by settings: (name, value); a pair of ends is a range."""

    family: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        asked = ", ".join(f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in self.settings)
        return f"{self.family}({asked})" if asked else self.family


def read_claims(folder: Path = CLAIMS_FOLDER) -> list[Claim]:
    """Every claim of the folder's `*.yaml`, by file name and in the order of the file.

    Raises:
        ConfigurationError: with every mistake of every file.
    """
    claims: list[Claim] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            read = TypeAdapter(ClaimFile).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problems.append(f"{path.name}: not YAML ({' '.join(str(error).split())})")
            continue
        except ValidationError as error:
            problems += [f"{path.name}: {_explain(e)}" for e in error.errors(include_url=False)]
            continue
        claims += [replace(claim, source=claim.source or read.source) for claim in read.claims]
        problems += [f"{path.name}: {claim.id}.{text}" for claim in read.claims for text in _mistakes(claim)]
    ids = [claim.id for claim in claims]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    problems += [f"{name}: two claims have this id; give each its own" for name in twice]
    if not problems:  # a claim of a file that could not be read must not look unknown
        others = [(claim.id, other) for claim in claims for other in claim.contradicts if other not in ids]
        problems = [f"{name}.contradicts: no claim {other!r}{suggest(other, ids)}" for name, other in others]
    if problems:
        raise ConfigurationError(problems)
    return claims


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [f.name for f in fields(Claim if "claims" in error["loc"] else ClaimFile)]
        return f"{key}: no such key{suggest(str(error['loc'][-1]), known)}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; given {error['input']!r}"


def _mistakes(claim: Claim) -> Iterator[str]:
    for place, text in enumerate(claim.checks):
        try:
            parse(text)
        except ValueError as error:
            yield f"checks.{place}: {error}; given {text!r}"
    allowed = ["memory_budget_gib", *COUNTS]
    if claim.at_equal is not None and claim.at_equal not in allowed:
        yield f"at_equal: no quantity {claim.at_equal!r}{suggest(claim.at_equal, allowed)}"


@dataclass(frozen=True)
class Check:
    """A comparison of one expression with numbers.

    Attributes:
        needs: the quantities of arms that the expression is made of.
        value, truth: the expression, and whether the comparison is true, from needs -> numbers or arrays.
    """

    text: str
    needs: tuple[Need, ...]
    value: Formula
    truth: Formula


@lru_cache(maxsize=256)
def parse(text: str) -> Check:
    """A check from its text.

    Raises:
        ValueError: what is not allowed, and what is.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ValueError("not an expression, such as 0.3 <= score(qlora) / score(lora) <= 0.5") from None
    if not isinstance(tree, ast.Compare) or not all(type(op) in _OPERATORS for op in tree.ops):
        raise ValueError("a check compares an expression with numbers by <, <=, > or >=")
    needs: list[list[Need]] = [[] for _ in (tree.left, *tree.comparators)]
    sides = [_formula(side, found) for side, found in zip((tree.left, *tree.comparators), needs, strict=True)]
    varying = [place for place, found in enumerate(needs) if found]
    if len(varying) != 1:
        raise ValueError(f"{len(varying)} sides of the comparison name arms; exactly one may, beside plain numbers")
    compared = [_OPERATORS[type(op)] for op in tree.ops]

    def truth(known: Mapping[Need, Any]) -> Any:
        values = [side(known) for side in sides]
        return reduce(operator.and_, map(lambda op, a, b: op(a, b), compared, values, values[1:]))

    return Check(text, tuple(dict.fromkeys(needs[varying[0]])), sides[varying[0]], truth)


def _formula(node: ast.expr, needs: list[Need]) -> Formula:
    """An expression as a function of what it needs, which is added to `needs`."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return lambda known: number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            negated = _formula(inner, needs)
            return lambda known: -negated(known)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op):
            left, right, calculate = _formula(node.left, needs), _formula(node.right, needs), _OPERATORS[type(op)]
            return lambda known: calculate(left(known), right(known))
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id=family)], keywords=[]):
            need = name, _arm(name, family, [])
        case ast.Call(
            func=ast.Name(id=name), args=[ast.Call(func=ast.Name(id=family), args=[], keywords=asked)], keywords=[]
        ):
            need = name, _arm(name, family, asked)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed; use numbers, + - * / and quantity(arm)")
    needs.append(need)
    return lambda known: known[need]


def _arm(quantity: str, family: str, asked: Sequence[ast.keyword]) -> Arm:
    names = [str(keyword.arg) for keyword in asked]
    found = [
        ("quantity", quantity, QUANTITIES),
        ("arm", family, ARMS),
        *(("setting", n, tuple(_SETTINGS)) for n in names),
    ]
    for word, given, allowed in found:
        if given not in allowed:
            raise ValueError(f"no {word} {given!r}{suggest(given, list(allowed))}")
    values = [ast.literal_eval(keyword.value) for keyword in asked]
    frozen = [tuple(value) if isinstance(value, list) else value for value in values]
    return Arm(family, tuple(zip(names, frozen, strict=True)))


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


def judge(group: Group, claims: Sequence[Claim], seed: int = 0) -> list[Verdict]:
    """One verdict a claim, in the order given; the same records and seed give the same verdicts."""
    verdicts = []
    for claim in claims:
        rng, unmet = np.random.default_rng(seed), _unmet(claim, group)
        by_check = [
            [Part(text, basis=unmet)] if unmet else _by_runs(group, parse(text), claim, rng) for text in claim.checks
        ]
        verdict = _worded(claim, by_check)
        verdicts.append(predicted(claim, seed) if verdict.word == "not tested" and claim.planner else verdict)
    return verdicts


def predicted(claim: Claim, seed: int = 0) -> Verdict:
    """The claim judged by the planner alone."""
    rng = np.random.default_rng(seed)
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
    arms = list(dict.fromkeys(arm for _, arm in check.needs))
    names = list(dict.fromkeys(name for name, _ in check.needs))
    found: list[Part] = []
    try:
        if "best_learning_rate" in names:
            known = {("best_learning_rate", arm): _best_rate(group, arm, rng) for arm in arms}
            return [_judged(check, tuple(map(str, arms)), known)]
        for labels, runs in _sets(group, arms, claim.at_equal):
            known = {}
            for name in names:
                wanted = [arm for arm in arms if (name, arm) in check.needs]
                drawn = _drawn(group, name, [runs[arm] for arm in wanted], rng, claim.at_equal)
                known |= {(name, arm): one for arm, one in zip(wanted, drawn, strict=True)}
            found.append(_judged(check, labels, known))
    except NotMeasuredError as error:
        found.append(Part(check.text, tuple(map(str, arms)), basis=str(error)))
    return found


def _best_rate(group: Group, arm: Arm, rng: np.random.Generator) -> Drawn:
    searches = tried(_matching(group, arm, searched=True), group.sweep.tunings)
    if len(searches) != 1:
        raise NotMeasuredError(f"{len(searches) or 'no'} searches of the learning rate of {arm}")
    losses = searches[0]
    return optimum_cell(losses)[0], optimum_draws(losses, rng, DRAWS), f"{len(losses)} rates tried with {arm}"


def _judged(check: Check, arms: tuple[str, ...], known: Mapping[Need, Drawn]) -> Part:
    sampled = {need: values for need, (_, values, _) in known.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(check.value({need: np.float64(one) for need, (one, _, _) in known.items()}))
        low, high = np.nanquantile(np.broadcast_to(check.value(sampled), DRAWS), (0.025, 0.975))
        truth = np.broadcast_to(check.truth(sampled), DRAWS)
    basis = "; ".join(dict.fromkeys(basis for _, _, basis in known.values()))
    if not np.isfinite(value):
        return Part(check.text, arms, basis=f"it would divide by 0 ({basis})")
    return Part(check.text, arms, value, float(low), float(high), float(truth.mean()), basis, truth)


def _matching(group: Group, arm: Arm, *, searched: bool = False) -> dict[str, list[Record]]:
    """The group's arms that are meant; of those that differ in the learning rate alone the best, unless `searched`.

    Of several, those called after the family itself are meant: `full` before `full_bf16`.
    """
    found = {name: runs for name, runs in group.by_arm.items() if _fits(arm, runs[0])}
    plain = {name: runs for name, runs in found.items() if runs[0].method == arm.family} or found
    if not plain:
        raise NotMeasuredError(f"no finished run of {arm}")
    return plain if searched else best_of_rates(plain)


def _fits(arm: Arm, record: Record) -> bool:
    method = record.config.method
    if family(record) != arm.family or is_control(record):
        return False
    published = all(_setting(method, path) in (None, usual) for path, usual in _PUBLISHED.items())
    return published and all(_equal(wanted, _setting(method, _SETTINGS[name])) for name, wanted in arm.settings)


def _setting(method: MethodConfig, path: str) -> Any:
    """A setting of the method by its dotted path; None where the method has no such part."""
    found: Any = method
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _equal(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, tuple) and not any(isinstance(end, str) for end in wanted):  # a range
        low, high = wanted
        return given is not None and (low is None or given >= low) and (high is None or given <= high)
    return sorted(wanted) == sorted(given) if isinstance(given, list) else bool(wanted == given)


def _sets(group: Group, arms: Sequence[Arm], at_equal: str | None) -> list[tuple[tuple[str, ...], Runs]]:
    """Arms that differ in what the claim names and in the learning rate alone, with their runs matched by seed."""
    meant = [_matching(group, arm) for arm in arms]
    free = {name for arm in arms for name, _ in arm.settings}
    free |= {"alpha"} if "rank" in free else set()
    found: list[tuple[tuple[str, ...], Runs]] = []
    reasons: dict[str, None] = {}
    for names in itertools.product(*meant):
        runs = [of_arm[name] for of_arm, name in zip(meant, names, strict=True)]
        if len(set(names)) < len(names) or not _alike(group, [of_arm[0] for of_arm in runs], free, at_equal):
            continue
        first = min(range(len(runs)), key=lambda place: is_untrained(runs[place][0]))
        for place in set(range(len(runs))) - {first}:  # an untrained run is the partner of every seed
            matching = match(group, names[first], names[place])
            reasons |= dict.fromkeys(str(reason) for _, reason in matching.refused)
            runs[first] = [left for left, _ in matching.pairs if left in runs[first]]
            runs[place] = list({right.run_id: right for _, right in matching.pairs}.values())
        if all(runs):
            found.append((names, dict(zip(arms, runs, strict=True))))
    if not found:
        who, equal = " and ".join(map(str, arms)), f" and in {at_equal}" if at_equal else ""
        refused = f"{who} may not be compared: {'; '.join(reasons)}"
        raise NotMeasuredError(refused if reasons else f"no runs of {who} agree in all other settings{equal}")
    return found


def _alike(group: Group, records: Sequence[Record], free: set[str], at_equal: str | None) -> bool:
    """Whether parts that several methods have (adapter, quantization) agree but for `free`, and what must be equal."""
    for part in ("adapter", "quantization"):
        present = [vars(found) for record in records if (found := getattr(record.config.method, part))]
        if any(of_one[k] != present[0][k] for of_one in present for k in of_one if k not in free):
            return False
    if at_equal == "memory_budget_gib":
        fitted = all(r.config.train.micro_batch == "auto" for r in records)
        return fitted and len({r.config.hardware.memory_budget_gib for r in records}) == 1
    if at_equal is None:
        return True
    values = [_column(group, at_equal).get(record.run_id, np.nan) for record in records]
    return max(values) - min(values) <= SAME * max(values)


def _column(group: Group, name: str) -> dict[str, float]:
    """run_id -> its value in the runs frame, or in that of the target loss, where it is known."""
    target = name == "seconds_to_target"
    frame = (reach_frame(group) if target else group.runs).set_index("run_id")
    known = frame.get("seconds" if target else name, pd.Series(dtype=float)).dropna()
    return {str(run_id): float(value) for run_id, value in known.items()}


def _drawn(
    group: Group, name: str, arms: Sequence[list[Record]], rng: np.random.Generator, at_equal: str | None
) -> list[Drawn]:
    """A quantity of several arms, given by their runs: drawn jointly."""
    seeds = max(map(len, arms))
    runs = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if name in SERVED:
        return [served_draws(name, of_arm, rng, DRAWS) for of_arm in arms]
    if name in EXAMPLES:
        known = _spikes(group, arms) if name == "gradient_spike_share" else _examples(group, name, arms)
        if known.examples < FEWEST_EXAMPLES:
            raise NotMeasuredError(f"only {known.examples} examples")
        sampled = draws(known, rng, DRAWS, alike=[not is_untrained(of_arm[0]) for of_arm in arms])
        basis = f"{known.examples} {'steps' if name == 'gradient_spike_share' else 'examples'}, {runs}"
        return [(float(known.mean[i]), sampled[:, i], basis) for i in range(len(arms))]
    values = _by_run(group, name, arms, at_equal)
    if name in COUNTS:
        return [(float(v.mean()), np.full(DRAWS, v.mean()), "exact") for v in values]
    sampled = amount_draws(values, rng)
    return [(float(v.mean()), sampled[:, i], runs) for i, v in enumerate(values)]


def _examples(group: Group, name: str, arms: Sequence[list[Record]]) -> Means:
    tables = measure_tables(group)
    kind, _, metric = name.partition("_")
    if kind == "score":
        found = [m for m in tables if m.kind == "score" and (not metric or m.name == metric)]
    else:
        wanted = {"test_loss": ("test",), "regression_mean": (SUITE_MEAN,), "instruction_following": INSTRUCTION_TASKS}
        found = [m for m in tables if m.name in wanted[name]]
    if not found:
        raise NotMeasuredError(f"the sweep measured no {name}")
    known = means_of(tables[found[0]], arms, (0.0, np.inf) if name == "test_loss" else (0.0, 1.0))
    if isinstance(known, str):
        raise NotMeasuredError(known)
    return known


def _spikes(group: Group, arms: Sequence[list[Record]]) -> Means:
    """Share of steps whose gradient norm is not finite, or far above those before."""
    rows = []
    for of_arm in arms:
        norms = [[s.gradient_norm for s in group.sweep.step_rows.get(run.run_id, ())] for run in of_arm]
        known = np.array([[np.inf if norm is None else norm for norm in of_run] for of_run in norms], dtype=float)
        if known.ndim < 2 or known.shape[1] <= SPIKE_WINDOW or not np.isfinite(known).any():
            raise NotMeasuredError(f"no gradient norms of more than {SPIKE_WINDOW} steps")
        before = np.lib.stride_tricks.sliding_window_view(known[:, :-1], SPIKE_WINDOW, axis=1)
        after = known[:, SPIKE_WINDOW:]
        rows.append((np.isinf(after) | (after > SPIKE_FACTOR * np.median(before, axis=2))).astype(float))
    if len({of_arm.shape[1] for of_arm in rows}) > 1:
        raise NotMeasuredError("the runs' steps are not equally many")
    return means(rows)


def _by_run(group: Group, name: str, arms: Sequence[list[Record]], at_equal: str | None) -> list[Floats]:
    """One number a run, by arm."""
    records = [run for of_arm in arms for run in of_arm]
    batches = {run.train.micro_batch or run.config.train.micro_batch for run in records if run.train}
    if name in AMOUNTS and at_equal != "memory_budget_gib" and len(batches) > 1:
        raise NotMeasuredError(f"the micro-batches differ ({', '.join(map(str, sorted(batches, key=str)))})")
    doubts = dict.fromkeys(text for run in records for text in speed_doubts(run, records[0]))
    if doubts and name in AMOUNTS and name != "peak_memory_bytes":
        raise NotMeasuredError("; ".join(doubts))
    known = _column(group, name)
    if any(run.run_id not in known for run in records):
        more = "; set hardware.price_usd_per_hour" if name == "cost_usd" else ""
        raise NotMeasuredError(f"{name} was not measured{more}")
    return [np.array([known[run.run_id] for run in of_arm]) for of_arm in arms]


# --- By the planner ---


def _by_planner(check: Check, claim: Claim, rng: np.random.Generator) -> Part:
    """Memory is right to about a tenth; time and cost lie between the assumed utilizations, alike for all arms."""
    share = rng.uniform(size=DRAWS)
    known: dict[Need, Drawn] = {}
    labels = tuple(dict.fromkeys(str(arm) for _, arm in check.needs))
    for name, arm in check.needs:
        try:
            columns = _planned(tuple(claim.planner), arm)
        except ConfigurationError as error:
            raise ConfigurationError([f"{claim.id}.planner: {text}" for text in error.problems]) from None
        value, basis = columns.get(name), "the planner"
        if value is None:
            return Part(check.text, labels, basis=f"the planner knows no {name}")
        if isinstance(value, tuple):  # (low, high); what is fast is cheap
            low, high = value[::-1] if name == "tokens_per_second" else value
            drawn = low * (high / low) ** share
            known[name, arm] = float(np.sqrt(low * high)), drawn, basis
        else:
            scatter = MARGIN / 2 * rng.standard_normal(DRAWS) if name == "peak_memory_bytes" else np.zeros(DRAWS)
            known[name, arm] = float(value), value * np.exp(scatter), basis
    return _judged(check, labels, known)


@lru_cache(maxsize=64)
def _planned(overrides: tuple[str, ...], arm: Arm) -> dict[str, Any]:
    """`Plan.columns` of what the overrides describe, trained by the arm's method."""
    ((config, options, machine),) = _planned_runs(overrides)
    asked = {f"method.{_SETTINGS[name]}": list(v) if isinstance(v, tuple) else v for name, v in arm.settings}
    config = with_settings(replace(config, method=preset(arm.family)), asked)
    return plan_of(config, options, machine).columns()


_planned_runs = lru_cache(maxsize=16)(planned_runs)
