"""Metrics: functions from an answer and its reference to a score, kept per example so that methods can be paired.

A built-in metric is one function under `@metric`; its name in `task.metrics` is the function's. Your own are named
my_scores:grade or evaluate:NAME (own_metrics.py).

Names, ranges and directions follow from what is named here: configurations are checked against `METRICS`, and what your
own metric states (`grade.range = (0, 5)`, `grade.higher_is_better = False`) is recorded with its scores.

The formulas are those of the field's standard packages (rouge-score, sacrebleu) where one works without a network; the
rest are a few lines with their source named. A corpus figure is the mean over examples and is named so ("mean sentence
BLEU", not corpus BLEU). An example that a metric fails on has no score and a reason; the others keep theirs.

    >>> score_all(["numeric"], ["so 3 + 4 = 7. #### 7"], ["#### 7.0"]).scores
    [{'numeric': 1.0}]
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import numbers
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import regex

from bench.own_metrics import Example, Grade, Range, column_name, is_own, loaded, of_three

NUMERIC_RELATIVE_TOLERANCE = Decimal("1e-6")
_REASON_CHARACTERS = 200  # of an exception's message


@dataclass(frozen=True)
class Metric:
    """How answers are scored.

    Attributes:
        grade: (prediction, reference, example) -> a number, or a mapping of several.
        range, higher_is_better: of the number; of several, a value for all or a mapping by name.
    """

    name: str
    grade: Grade
    range: Range | Mapping[str, Range] = (0.0, 1.0)
    higher_is_better: bool | Mapping[str, bool] = True


METRICS: dict[str, Metric] = {}  # the built-in ones: each gives a number from 0 to 1, 1 is perfect


def metric(function: Callable[..., float]) -> Callable[..., float]:
    """Make a function of (prediction, reference) or (prediction, reference, example) a built-in metric."""
    METRICS[function.__name__] = Metric(function.__name__, of_three(function))
    return function


def load(name: str) -> Metric:
    """A metric by its name. Code of your own is run.

    Raises:
        ValueError: unknown names, and what `own_metrics.loaded` cannot load.
    """
    if is_own(name):
        return Metric(column_name(name), *loaded(name))
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; allowed: {', '.join(sorted(METRICS))}")
    return METRICS[name]


# --- Scoring ---


@dataclass(frozen=True)
class Scale:
    """What one column of scores means. `low`, `high`: None where the metric states no bound."""

    low: float | None = 0.0
    high: float | None = 1.0
    higher_is_better: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and most possible value, infinite where not stated."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


@dataclass(frozen=True)
class Scored:
    """Scores of examples, in their order.

    Attributes:
        scores: by example, name -> value; without the names of metrics that failed on it.
        problems: by example, metric -> why it failed.
        scales: name -> what its values mean; the first is the primary score.
    """

    scores: list[dict[str, float]]
    problems: list[dict[str, str]]
    scales: dict[str, Scale]


def score_all(
    metrics: Sequence[str], predictions: Sequence[str], references: Sequence[str], examples: Sequence[Example] = ()
) -> Scored:
    """Every metric of every example.

    Args:
        metrics: names, the primary one first.
        examples: what each example holds beside its reference; `label` reads "labels", the allowed answers.

    Raises:
        ValueError: predictions and references that differ in number, a metric that cannot be loaded or fails on every
            example.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references; they are paired")
    scored = Scored([{} for _ in predictions], [{} for _ in predictions], {})
    for used in map(load, metrics):
        reasons = []
        asked = zip(predictions, references, examples or [{}] * len(predictions), strict=True)
        for one, scores, problems in zip(asked, scored.scores, scored.problems, strict=True):
            try:
                values = _values(used, *one)
            except Exception as error:  # somebody else's code may raise anything; the other examples keep their scores
                problems[used.name] = f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
                reasons.append(problems[used.name])
                continue
            scores.update(values)
            scored.scales.update({name: _scale(used, name) for name in values})
        if reasons and len(reasons) == len(predictions):
            raise ValueError(f"the metric {used.name} failed on all {len(reasons)} examples; first {reasons[0]}")
    return scored


def blind(metrics: Sequence[str], references: Sequence[str], examples: Sequence[Example] = ()) -> dict[str, int]:
    """Built-in metric -> references that do not score 1 as their own answer: without a number, say, or a word."""
    built_in = [name for name in metrics if not is_own(name)]
    scored = score_all(built_in, references, references, examples)
    return dict(Counter(name for of_one in scored.scores for name, value in of_one.items() if value < 1 - 1e-9))


def means(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Name -> mean over the examples that have a value."""
    rows = list(scores)
    columns = {name: [row[name] for row in rows if name in row] for name in dict.fromkeys(itertools.chain(*rows))}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _values(metric: Metric, prediction: str, reference: str, example: Example) -> dict[str, float]:
    """What the metric gives for one example, by the name of the column.

    Raises:
        ValueError: something that is no finite number, or outside the range that the metric states.
    """
    given = metric.grade(prediction, reference, example)
    values = {metric.name: given}
    if isinstance(given, Mapping):
        values = {f"{metric.name}.{name}": value for name, value in given.items()}
    if not values:
        raise ValueError("it gave no score")
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"it gave {value!r:.60}, which is no finite number")
        low, high = _scale(metric, name).bounds
        if not low <= float(value) <= high:
            raise ValueError(f"it gave {float(value):g}, outside its range of {low:g} to {high:g}")
    return {name: float(value) for name, value in values.items()}


def _scale(metric: Metric, name: str) -> Scale:
    """Of a column, which is the metric's name or `METRIC.KEY`."""
    key = name.removeprefix(f"{metric.name}.")
    stated, better = metric.range, metric.higher_is_better
    low, high = stated.get(key, (None, None)) if isinstance(stated, Mapping) else stated
    return Scale(low, high, bool(better.get(key, True) if isinstance(better, Mapping) else better))


# --- Words of any script ---

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # written without spaces
_CHARACTER = regex.compile(rf"[{_SPACELESS}]\p{{M}}*")
WORD = rf"(?V1)[{_SPACELESS}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_SPACELESS}]]+"  # a pattern of `regex`


def words(text: str) -> list[str]:
    """Runs of letters and digits of any script, in lower case; a character of a script without spaces is a word.

    Compatibility forms are one (NFKC): full-width letters, composed and decomposed accents.

    >>> words("Grüße, 世界 2!")
    ['grüße', '世', '界', '2']
    """
    return regex.findall(WORD, unicodedata.normalize("NFKC", text).lower())


def _spaced(text: str) -> str:
    """The text with spaces around each character of a script without spaces."""
    return _CHARACTER.sub(r" \g<0> ", text)


# --- The built-in metrics ---


def _rouge(kind: str, prediction: str, reference: str) -> float:
    """ROUGE F1 by rouge-score (Lin 2004), over `words`. No stemming: it is for English, and our answers may be code."""
    return float(_rouge_scorer(kind).score(reference, prediction)[kind].fmeasure)


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: two seconds, so only when asked for

    return RougeScorer([kind], tokenizer=SimpleNamespace(tokenize=words))  # its own keeps a-z and 0-9 alone


METRICS |= {kind: Metric(kind, of_three(functools.partial(_rouge, kind))) for kind in ("rouge1", "rouge2", "rougeL")}


@metric
def bleu(prediction: str, reference: str) -> float:
    """Sentence BLEU by sacrebleu (13a tokenizer, exponential smoothing) / 100.

    Effective order leaves out n-gram orders longer than the answer, which would else be zero for short answers. In a
    script without spaces each character is a word, as in sacrebleu's tokenizer for Chinese.
    """
    import sacrebleu

    if not prediction.strip() or not reference.strip():
        return 0.0
    found = sacrebleu.sentence_bleu(_spaced(prediction), [_spaced(reference)], use_effective_order=True)
    return min(1.0, found.score / 100)


@metric
def chrf(prediction: str, reference: str) -> float:
    """Character n-gram F-score, chrF2 by sacrebleu (Popovic 2015) / 100."""
    import sacrebleu

    return min(1.0, sacrebleu.sentence_chrf(prediction, [reference]).score / 100)


@metric
def exact_match(prediction: str, reference: str) -> float:
    """Equal once outer white space is removed and inner runs of it are one space."""
    return float(prediction.split() == reference.split())


_ARTICLES = re.compile(r"\b(a|an|the)\b")


@metric
def token_f1(prediction: str, reference: str) -> float:
    """Word overlap F1 of SQuAD (Rajpurkar et al. 2016, `f1_score` of evaluate-v1.1.py).

    Lower case, without punctuation and English articles; as in MLQA (Lewis et al. 2020) punctuation of any script goes,
    and a character of a script without spaces is a word. As in SQuAD 2.0, two empty answers agree.
    """
    predicted, expected = _squad_words(prediction), _squad_words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


def _squad_words(text: str) -> list[str]:
    kept = (c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return _spaced(_ARTICLES.sub(" ", "".join(kept))).split()


@metric
def numeric(prediction: str, reference: str) -> float:
    """The final numbers agree within a relative 1e-6 (GSM8K convention, Cobbe et al. 2021)."""
    predicted, expected = final_number(prediction), final_number(reference)
    if predicted is None or expected is None:
        return 0.0
    return float(abs(predicted - expected) <= NUMERIC_RELATIVE_TOLERANCE * abs(expected))


_SPACE = " \N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}"
_DIGITS = rf"""(?:
    (?P<commas>(?<!\d,)\d{{1,3}}(?:,\d{{3}})+(?!,?\d)(?:\.\d+)?)           # 1,234,567.5
  | (?P<dots>\d{{1,3}}(?:(?:\.\d{{3}})+,\d+(?!,?\d)|(?:\.\d{{3}}){{2,}}(?![.\d])))     # 1.234.567,5
  | (?P<spaces>(?<!\d[{_SPACE}])\d{{1,3}}(?:[{_SPACE}]\d{{3}})+(?!\d)(?:[.,]\d+)?)  # 1 234 567,5
  | (?P<comma>(?<!\d,)\d+,\d+(?!,?\d))                                     # 3,5
  | (?P<plain>\d+(?:\.\d+)?|\.\d+)
)(?:[eE](?P<exponent>[+-]?\d{{1,3}})(?!\d))?"""
_NUMBER = re.compile(rf"(?:(?<![\w.])(?P<minus>-))?(?:\$[{_SPACE}]?(?P<behind>-)?)?{_DIGITS}", re.VERBOSE)
_MARKED = re.compile(rf"\#\#\#\#[\s*_:=]*(?={_NUMBER.pattern})", re.VERBOSE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def final_number(text: str) -> Decimal | None:
    r"""The first number that directly follows a '####', else the last in the last '\boxed{}', else the last.

    - '####' before words is a heading, and no mark. Where no number at all comes after the last '####', or is in the
      '\boxed{}', there is none.
    - A minus belongs to the number that it touches: "- 42" is an item of a list.
    - Commas, dots or spaces between groups of three digits are left out ("1,234", "1 000", "1.234,5"); a single comma
      before other than three digits is a decimal one ("3,5"); more commas make a list ("1,2,3" ends in 3).
    - A dollar sign is left out. A fraction such as 1/2 is read as its last number.

    >>> final_number("12 apples cost $1,250.50.")
    Decimal('1250.50')
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    if marked := _MARKED.search(text):
        return _decimal(next(_NUMBER.finditer(text, marked.end())))
    behind = text.rpartition("####")[2]
    boxed = _BOXED.findall(text)
    if not _NUMBER.search(behind):
        return None
    found = list(_NUMBER.finditer(boxed[-1] if boxed else text))
    return _decimal(found[-1]) if found else None


def _decimal(number: re.Match[str]) -> Decimal:
    kind = next(name for name in ("commas", "dots", "spaces", "comma", "plain") if number[name] is not None)
    separators = {"commas": ",", "dots": ".", "spaces": _SPACE}.get(kind, "")
    digits = "".join(c for c in number[kind] if c not in separators).replace(",", ".")
    return Decimal(f"{number['minus'] or number['behind'] or ''}{digits}e{number['exponent'] or 0}")


@metric
def label(prediction: str, reference: str, example: Example) -> float:
    """The answer is one of `example["labels"]`, and the right one; compared as `normalised_label`.

    Raises:
        ValueError: without labels.
    """
    if not example.get("labels"):
        raise ValueError("metric 'label' needs labels, the list of allowed answers; given none")
    predicted = normalised_label(prediction)
    return float(predicted == normalised_label(reference) and predicted in map(normalised_label, example["labels"]))


_AROUND_LABEL = r"[\s\p{Terminal_Punctuation}\p{Quotation_Mark}\p{Ps}\p{Pe}`*]+"
_OUTSIDE_LABEL = regex.compile(rf"\A{_AROUND_LABEL}|{_AROUND_LABEL}\Z")


@functools.lru_cache(maxsize=4096)
def normalised_label(text: str) -> str:
    """Lower case, underscores as spaces, white space collapsed.

    Quotes, brackets, full stops and the like of any script around it are removed, unless nothing else would be left.
    """
    plain = " ".join(text.casefold().replace("_", " ").split())
    return _OUTSIDE_LABEL.sub("", plain) or plain


_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)


@metric
def json_valid(prediction: str, reference: str) -> float:
    """The whole answer parses as JSON (RFC 8259: NaN and Infinity do not); one ```json fence around it is allowed."""
    try:
        json.loads(_FENCE.sub(r"\1", prediction.strip()), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return 0.0
    return 1.0


_OPENING = re.compile(r"[\[{]")  # of JSON


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls of functions in an answer, as {"name", "arguments"}, whatever stands around their JSON.

    Read are objects with a name and `arguments` or (Llama) `parameters`, alone, in a list, or as {"function": {...}}.
    """
    found, at = [], 0
    while start := _OPENING.search(text, at):
        try:
            value, at = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        for entry in value if isinstance(value, list) else [value]:
            call = entry.get("function", entry) if isinstance(entry, dict) else {}
            arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else None
            if arguments is not None and isinstance(call.get("name"), str):
                found.append({"name": call["name"], "arguments": arguments})
    return found


@metric
def tool_call(prediction: str, reference: str) -> float:
    """The same calls in any order, names and arguments equal as JSON; without a call in the reference: none."""
    predicted, expected = tool_calls(prediction), tool_calls(reference)
    return float(len(predicted) == len(expected) and all(predicted.count(c) == expected.count(c) for c in expected))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
