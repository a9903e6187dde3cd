"""Every metric against answers computed by hand."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bench.config import TaskConfig
from bench.metrics import Scale, final_number, load, means, score_all
from bench.mistakes import ConfigurationError, checked
from bench.own_metrics import code_files, column_name


def score(metric: str, prediction: str, reference: str, labels: list[str] | None = None) -> float:
    return float(load(metric).grade(prediction, reference, {"labels": labels}))


def test_an_unknown_metric_is_a_configuration_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match=r"metrics\.1: no such metric \(did you mean 'rougeL'.*rouge_l"):
        checked(TaskConfig, {"name": "t", "source": "files", "metrics": ["bleu", "rouge_l"]})
    own = {"name": "t", "source": "files", "metrics": ["my_scores:grade", "evaluate:folder/wer"]}
    assert checked(TaskConfig, own).metrics == own["metrics"]


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        # "the cat sat" / "the cat ran off": 2 shared words of 3 and 4 -> F1 = 2*2/(3+4)
        ("rouge1", "the cat sat", "the cat ran off", 4 / 7),
        # bigrams: 1 shared of 2 and 3
        ("rouge2", "the cat sat", "the cat ran off", 2 / 5),
        # longest common subsequence of "a c b" and "a b c d": 2 -> 2*2/(3+4)
        ("rougeL", "a c b", "a b c d", 4 / 7),
        ("rougeL", "returns", "return", 0.0),  # no stemming
        ("rougeL", "", "word", 0.0),
        ("rougeL", "добрый день", "добрый вечер", 1 / 2),
        ("rouge1", "caf\u00e9", "cafe\u0301", 1.0),  # composed and decomposed
        ("rougeL", "今天天气很好", "今天天气不好", 5 / 6),  # characters are the words
        ("rouge1", "\uff46ull width", "full width", 1.0),
        # unigrams 5/6, bigrams 3/5, trigrams 2/4, 4-grams 1/3 of the characters
        ("bleu", "今天天气很好", "今天天气不好", (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        ("bleu", "a b c d", "a b c d", 1.0),
        ("bleu", "a b", "a b", 1.0),  # effective order: only uni- and bigrams exist
        # precisions 3/3, 2/2, 1/1 and brevity penalty exp(1 - 4/3)
        ("bleu", "a b c", "a b c d", math.exp(1 - 4 / 3)),
        ("bleu", "", "a b", 0.0),
        ("chrf", "abcdef", "abcdef", 1.0),
        ("chrf", "abc", "xyz", 0.0),
        ("exact_match", "  two\n words ", "two words", 1.0),
        ("exact_match", "Two words", "two words", 0.0),
        # words: {quick, fox} and {quick, brown, fox}
        ("token_f1", "The quick fox!", "a quick brown fox", 4 / 5),
        ("token_f1", "", "fox", 0.0),
        ("token_f1", "the", "a", 1.0),  # both empty without articles
        ("token_f1", "今天天气很好。", "今天天气不好", 5 / 6),
        ("token_f1", "«да»", "да", 1.0),
        ("numeric", "First 5, then 1,234.", "#### 1234", 1.0),
        ("numeric", "#### 7\nNext question: 8", "7", 1.0),
        ("numeric", r"so \boxed{12.50} of 99", "12.5", 1.0),
        ("numeric", "1000000.5", "1000000", 1.0),  # within a relative 1e-6
        ("numeric", "1000002", "1000000", 0.0),
        ("numeric", "1e99999999", "5", 0.0),  # no overflow
        ("numeric", "none", "0", 0.0),
        ("numeric", "0", "0", 1.0),
        ("json_valid", '{"a": [1, null]}', "", 1.0),
        ("json_valid", '```json\n{"a": 1}\n```', "", 1.0),
        ("json_valid", "```\n[]\n```", "", 1.0),
        ("json_valid", 'Here: {"a": 1}', "", 0.0),
        ("json_valid", "{'a': 1}", "", 0.0),
        ("json_valid", "NaN", "", 0.0),
        ("json_valid", "[" * 100_000, "", 0.0),
    ],
)
def test_by_hand(metric: str, prediction: str, reference: str, expected: float) -> None:
    assert score(metric, prediction, reference) == pytest.approx(expected)


def test_chrf_of_one_letter_order() -> None:
    """'ab' / 'ac': unigram P = R = 1/2, bigram 0, higher orders do not exist: chrF2 = mean P, mean R = 1/4."""
    assert score("chrf", "ab", "ac") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,250.50.", "1250.50"),
        ("-$5", "-5"),
        ("from 3-4", "4"),
        ("x = -2", "-2"),
        ("\N{MINUS SIGN}3", "-3"),
        ("1.5e3", "1500"),
        (".5", "0.5"),
        ("12kg", "12"),
        ("18 eggs, version 1.2.", "1.2"),
        ("- 42", "42"),  # an item of a list
        ("- -42", "-42"),
        ("$-5", "-5"),
        ("1,2,3", "3"),
        ("1,2,345", "345"),
        ("1 000", "1000"),
        ("total 12\u202f500,5 EUR", "12500.5"),
        ("2024 100 200", "200"),
        ("3,5", "3.5"),
        ("1.234,56", "1234.56"),
        ("1.000.000", "1000000"),
        ("1,000,000.5", "1000000.5"),
        ("#### Step 1: add. The answer is 7", "7"),
        ("## a\n#### **$1,250**\n#### Next 3", "1250"),
        ("٤٢", "42"),
    ],
)
def test_final_number(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


def test_marked_answer_without_a_number_is_none() -> None:
    assert final_number("5 and 6 #### unknown") is None
    assert final_number("words") is None


def test_label_must_be_right_and_allowed() -> None:
    labels = ["card_arrival", "lost_card"]
    assert score("label", " Card arrival. ", "card_arrival", labels=labels) == 1.0
    assert score("label", "lost_card", "card_arrival", labels=labels) == 0.0
    assert score("label", "other", "other", labels=labels) == 0.0
    assert score("label", "the answer is card_arrival", "card_arrival", labels=labels) == 0.0


@pytest.mark.parametrize("answer", ["„Ja“", "«ja».", "ja。", "[JA]", "`ja`!"])
def test_a_label_is_read_without_the_quotes_and_stops_of_any_script(answer: str) -> None:
    assert score("label", answer, "ja", labels=["ja", "nein"]) == 1.0


def test_labels_of_punctuation_alone_differ() -> None:
    labels = ["*", "**", "C#", "C"]
    assert [score("label", answer, "*", labels=labels) for answer in ("*", "**", "", "?")] == [1, 0, 0, 0]
    assert score("label", "C", "C#", labels=labels) == 0.0


def test_score_all_keeps_the_order() -> None:
    scored = score_all(["exact_match", "json_valid"], ["1", "x"], ["1", "y"])
    assert scored.scores == [{"exact_match": 1.0, "json_valid": 1.0}, {"exact_match": 0.0, "json_valid": 0.0}]
    assert scored.problems == [{}, {}]
    assert scored.scales == {"exact_match": Scale(0, 1, True), "json_valid": Scale(0, 1, True)}


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="allowed: bleu, chrf"):
        score("rouge9", "", "")
    with pytest.raises(ValueError, match="needs labels"):
        score("label", "a", "a")
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        score_all(["bleu"], ["a", "b"], ["a"])


# --- Metrics of your own ---


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two scorers, which is the current one."""
    (tmp_path / "my_scores.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "import beside\n"
        "@dataclasses.dataclass\n"
        "class Judge:\n"
        "    strict: bool = True\n"
        "def grade(prediction, reference, example):\n"
        "    return 1 / int(example['weight'])\n"
        "def several(prediction, reference):\n"
        "    return {'length': len(prediction), 'errors': beside.ERRORS}\n"
        "several.range = {'length': (0, 10)}\n"
        "several.higher_is_better = {'errors': False}\n"
        "def broken(prediction, reference):\n"
        "    return float('nan')\n"
    )
    (tmp_path / "beside.py").write_text("ERRORS = 2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_scorer_that_raises_on_one_example_loses_that_example_only(own: Path) -> None:
    examples = [{"weight": "2"}, {"weight": "0"}, {"weight": "4"}]
    scored = score_all(["my_scores:grade", "exact_match"], ["a", "b", "c"], ["a", "x", "c"], examples)
    assert scored.scores == [{"grade": 0.5, "exact_match": 1}, {"exact_match": 0}, {"grade": 0.25, "exact_match": 1}]
    assert scored.problems == [{}, {"grade": "ZeroDivisionError: division by zero"}, {}]
    assert scored.scales["grade"] == Scale(None, None, True)
    assert means(scored.scores) == {"grade": 0.375, "exact_match": 2 / 3}


def test_a_scorer_may_give_several_numbers_and_state_range_and_direction(own: Path) -> None:
    scored = score_all([f"{own}/my_scores.py:several"], ["abc", "a" * 11], ["", ""])
    assert scored.scores == [{"several.length": 3, "several.errors": 2}, {}]
    assert scored.scales == {"several.length": Scale(0, 10, True), "several.errors": Scale(None, None, False)}
    assert scored.problems[1] == {"several": "ValueError: it gave 11, outside its range of 0 to 10"}


def test_a_scorer_that_fails_on_every_example_is_an_error(own: Path) -> None:
    with pytest.raises(ValueError, match="broken failed on all 1 examples; first ValueError: it gave nan"):
        score_all(["my_scores:broken"], ["a"], ["a"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_scorse:grade", r"no file my_scorse\.py below .* or installed"),
        ("my_scores:grad", "has no function 'grad'"),
        ("evaluate:no/such/folder", "cannot be loaded by evaluate"),
    ],
)
def test_what_cannot_be_loaded_is_named(own: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name)


def test_a_module_of_the_hub_may_name_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    asked = []

    def load_module(place: str, **options: Any) -> Any:
        asked.append((place, options["revision"]))
        raise ConnectionError("no hub")

    monkeypatch.setattr(evaluate, "load", load_module)
    for name in ("evaluate:owner/wer@v1", "evaluate:owner/wer"):
        with pytest.raises(ValueError, match="cannot be loaded by evaluate"):
            load(name)
        assert column_name(name) == "wer"
    assert asked == [("owner/wer", "v1"), ("owner/wer", None)]


def test_a_module_of_evaluate_from_a_folder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own / "wer"
    folder.mkdir()
    (folder / "wer.py").write_text(
        "import datasets\nimport evaluate\n"
        "class Wer(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='', features=features)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'wer': sum(p != r for p, r in zip(predictions[0].split(), references[0].split())) / 2}\n"
    )
    scored = score_all([f"evaluate:{folder}"], ["a b", "a c"], ["a b", "a b"])
    assert scored.scores == [{"wer": 0.0}, {"wer": 0.5}]
    assert scored.scales == {"wer": Scale(None, None, higher_is_better=False)}
    assert code_files(["rougeL", f"evaluate:{folder}", "my_scores:grade"]) == [folder / "wer.py", Path("my_scores.py")]
