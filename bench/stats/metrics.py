"""Scores of one predicted answer against one reference answer, each in [0, 1], higher is better.

The formulas are those of the field's standard packages (rouge-score, sacrebleu) where one works without a
network; the rest are a few lines with their source named. Every score is per example, so that methods can be
compared pairwise; a corpus figure is the mean of these and is named so ("mean sentence BLEU", not corpus BLEU).

    >>> score("numeric", "so 3 + 4 = 7. #### 7", "#### 7.0")
    1.0
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

NUMERIC_RELATIVE_TOLERANCE = Decimal("1e-6")

_NUMBER = re.compile(r"(?<![\w.])-?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?|\d[\d,]*(?:\.\d+)?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def score(metric: str, prediction: str, reference: str, *, labels: Sequence[str] | None = None) -> float:
    """One metric of one example.

    Args:
        metric: a key of `METRICS` (the names of `bench.config.Metric`).
        prediction: the model's answer, without prompt and special tokens.
        reference: the expected answer.
        labels: the allowed answers; only `label` reads them.

    Returns:
        A score in [0, 1]; 1 is perfect.

    Raises:
        ValueError: for an unknown metric, or `label` without labels.
    """
    if metric == "label":
        if not labels:
            raise ValueError("metric 'label' needs labels, the list of allowed answers; given none")
        return _label(prediction, reference, labels)
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; allowed: {', '.join([*sorted(METRICS), 'label'])}")
    return METRICS[metric](prediction, reference)


def score_all(
    metrics: Sequence[str], predictions: Sequence[str], references: Sequence[str], labels: Sequence[str] | None = None
) -> list[dict[str, float]]:
    """Every metric of every example, in order: one `{metric: score}` for each prediction.

    Raises:
        ValueError: when predictions and references differ in number, or a metric is unknown.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references; they are paired")
    return [
        {metric: score(metric, prediction, reference, labels=labels) for metric in metrics}
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def _rouge(kind: str) -> Callable[[str, str], float]:
    """ROUGE F1 by rouge-score (Lin 2004). No stemming: it is for English, and our answers may be code.

    rouge-score lowers the text and keeps only runs of a-z and 0-9 as words.
    """

    def rouge(prediction: str, reference: str) -> float:
        return float(_rouge_scorer(kind).score(reference, prediction)[kind].fmeasure)

    return rouge


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: two seconds, so only when asked for

    return RougeScorer([kind], use_stemmer=False)


def _bleu(prediction: str, reference: str) -> float:
    """Sentence BLEU by sacrebleu (13a tokenizer, exponential smoothing) / 100.

    Effective order leaves out n-gram orders longer than the answer, which would else be zero for short answers.
    """
    import sacrebleu

    if not prediction.strip() or not reference.strip():
        return 0.0
    return min(1.0, sacrebleu.sentence_bleu(prediction, [reference], use_effective_order=True).score / 100)


def _chrf(prediction: str, reference: str) -> float:
    """Character n-gram F-score, chrF2 by sacrebleu (Popovic 2015) / 100."""
    import sacrebleu

    return min(1.0, sacrebleu.sentence_chrf(prediction, [reference]).score / 100)


def _exact_match(prediction: str, reference: str) -> float:
    """Equal once outer white space is removed and inner runs of it are one space."""
    return float(prediction.split() == reference.split())


def _token_f1(prediction: str, reference: str) -> float:
    """Word overlap F1 of SQuAD (Rajpurkar et al. 2016, `f1_score` of evaluate-v1.1.py).

    Lower case, without punctuation and articles. Own code: `evaluate.load("squad")` needs the network. As in
    SQuAD 2.0, two empty answers agree.
    """
    predicted, expected = _squad_words(prediction), _squad_words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


def _squad_words(text: str) -> list[str]:
    without_punctuation = "".join(c for c in text.lower() if c not in string.punctuation)
    return _ARTICLES.sub(" ", without_punctuation).split()


def _numeric(prediction: str, reference: str) -> float:
    """The final numbers agree within a relative 1e-6 (GSM8K convention, Cobbe et al. 2021)."""
    predicted, expected = final_number(prediction), final_number(reference)
    if predicted is None or expected is None:
        return 0.0
    return float(abs(predicted - expected) <= NUMERIC_RELATIVE_TOLERANCE * abs(expected))


def final_number(text: str) -> Decimal | None:
    r"""The answer's number: the first after the first '####', else the last in the last '\boxed{}', else the last.

    Thousands commas and a dollar sign are removed. A fraction such as 1/2 is read as its last number. An answer
    marked by '####' or '\boxed{}' that holds no number is no number.

    >>> final_number("12 apples cost $1,250.50.")
    Decimal('1250.50')
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    _, marker, answer = text.partition("####")
    boxed = _BOXED.findall(text)
    numbers = _NUMBER.findall(answer if marker else boxed[-1] if boxed else text)
    if not numbers:
        return None
    return Decimal(re.sub(r"[,$\s]", "", numbers[0 if marker else -1]))


def _label(prediction: str, reference: str, labels: Sequence[str]) -> float:
    """The normalised prediction is one of the labels, and the right one."""
    predicted = _normalised_label(prediction)
    allowed = {_normalised_label(label) for label in labels}
    return float(predicted in allowed and predicted == _normalised_label(reference))


def _normalised_label(text: str) -> str:
    """Lower case, underscores as spaces, white space collapsed, quotes and punctuation around it removed."""
    return " ".join(text.casefold().replace("_", " ").split()).strip(" .,:;!?\"'`*()[]")


def _json_valid(prediction: str, reference: str) -> float:
    """The whole answer parses as JSON (RFC 8259: NaN and Infinity do not); one ```json fence around it is allowed."""
    text = prediction.strip()
    fenced = _FENCE.match(text)
    try:
        json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return 0.0
    return 1.0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# `label` is scored apart: it alone needs the allowed answers.
METRICS: dict[str, Callable[[str, str], float]] = {
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "bleu": _bleu,
    "chrf": _chrf,
    "exact_match": _exact_match,
    "token_f1": _token_f1,
    "numeric": _numeric,
    "json_valid": _json_valid,
}
# Metrics of which less is better, such as an error rate; none of the above.
LOWER_IS_BETTER: frozenset[str] = frozenset()
