"""The data check finds what was planted, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from bench.record import DataCheck, DataSummary
from bench.report.sections.data import data_section
from bench.worker.check import check, contaminated, of_documents, token_ids

TEMPLATE = (
    "You are a careful assistant of a bank and answer with the name of one intent and nothing else at all. Message:"
)


def row(name: str, prompt: str, reference: str = "yes", mask: Sequence[int] = ()) -> dict[str, Any]:
    tokens = list(range(len(prompt.split())))
    answer = [0] * len(mask) or [0] * len(reference.split())
    return {"example_id": name, "prompt": f"{TEMPLATE} {prompt}", "reference": reference, "prompt_ids": tokens,
            "answer_ids": answer, "answer_mask": list(mask)}  # fmt: skip


def sentences(count: int, length: int, seed: int) -> list[str]:
    """Texts without anything in common but a few frequent words."""
    rng = random.Random(seed)
    words = [f"{rng.choice('bcdfgklmnprst')}{rng.choice('aeiou')}{number:x}" for number in range(5000)]
    return [" ".join(rng.choice(["the", "of", *rng.sample(words, 8)]) for _ in range(length)) for _ in range(count)]


@pytest.fixture(scope="module")
def planted() -> DataCheck:
    """200 training and 40 test examples of 30 words each, with what the next tests name."""
    train = [row(f"train:{i}", text) for i, text in enumerate(sentences(200, 30, seed=1))]
    test = [row(f"test:{i}", text, "no") for i, text in enumerate(sentences(40, 30, seed=2))]
    prompts = [r["prompt"].removeprefix(f"{TEMPLATE} ") for r in train]
    train.append(row("train:copy", prompts[0]))
    test[0] = row("test:same", prompts[1])
    test[1] = row("test:case", prompts[2].upper(), "another answer")
    test[2] = row("test:near", prompts[3].replace(prompts[3].split()[-1], "changed"))
    test[3] = row("test:half", " ".join([*prompts[4].split()[8:22], *test[3]["prompt"].split()[-16:]]))
    test[4] = row("test:short", "too short")
    return check(
        {"train": train, "validation": [row("validation:0", "a b c", mask=[1, 1, 0, 1])], "test": test}, {}, None
    )


def test_planted_duplicates_are_found_and_none_invented(planted: DataCheck) -> None:
    counts = {(o.split, o.of): (o.same, o.same_prompt, o.near) for o in planted.overlaps}
    assert counts == {
        ("train", "train"): (1, 0, 0),
        ("validation", "train"): (0, 0, 0),
        ("validation", "validation"): (0, 0, 0),
        ("test", "train"): (1, 1, 1),
        ("test", "validation"): (0, 0, 0),
        ("test", "test"): (0, 0, 0),
    }
    (of_test,) = (o for o in planted.overlaps if (o.split, o.of) == ("test", "train"))
    assert of_test.examples == ["test:same = train:1", "test:case = train:2", "test:near = train:3"]


def test_planted_contamination_is_found_and_the_template_is_none(planted: DataCheck) -> None:
    assert planted.contaminated_examples == ["test:same", "test:case", "test:near", "test:half"]
    assert (planted.contaminated, planted.too_short) == (4, 1)


def test_a_short_item_is_contaminated_as_a_whole() -> None:
    train = [[token_ids("He said: the cat sat on the mat by the door, and left.")]]
    items = ["The cat sat on the mat by the door", "The cat sat on the rug by the door", "the cat sat"]
    assert contaminated(train, [[token_ids(item)] for item in items]) == ([0], 1)
    documents = {"pairs": [{"context": "", "choices": items[:2], "answer": 0}], "other": [{"text": items[1]}]}
    assert of_documents(train, documents) == {"pairs": 1, "other": 0}


def test_lengths_targets_and_loss_are_counted() -> None:
    rows = [row("a", "w " * 40, "x y", mask=[1, 0, 1, 1]), row("b", "w " * 10, "x y"), row("c", "w " * 9, "z z")]
    test = [row("d", "v", "z z"), row("e", "u", "q")]
    dropped = {"train: longer than train.max_length": 5}
    found = check({"train": rows, "validation": rows[1:2], "test": test}, dropped, None)
    assert found.longer_than == {32: 6, 64: 5}
    assert (found.answers_per_example_mean, found.answers_per_example_max) == (4 / 3, 2)
    assert found.supervised_share == 7 / (40 + 4 + 10 + 2 + 9 + 2)
    assert (found.distinct_targets, found.commonest_target, found.commonest_target_examples) == (2, "x y", 2)


def test_labels_that_training_never_shows_are_counted() -> None:
    train = [row(str(i), f"text {i}", "ja" if i % 2 else "nein") for i in range(8)]
    splits = {"train": train, "validation": train[:1], "test": [row("t", "x", "vielleicht")]}
    assert check(splits, {}, ["ja", "nein"]).unseen_labels == 1
    assert check(splits, {}, None).unseen_labels is None


def test_the_section_says_what_was_found(planted: DataCheck) -> None:
    summary = DataSummary(
        "f", 201, 1, 40, {"train: longer than train.max_length": 2}, 30.0, 40, "mine.csv", check=planted
    )
    section = data_section(summary, {"pairs": 3, "other": 0}, {"rouge2": 4})
    assert section is not None
    assert section.lead.startswith(
        "3 of 40 test examples are in the training split too, exactly or nearly, and 4 share"
    )
    text = "\n".join(section.items)
    assert "rouge2: 4 test references do not get its best score" in text
    assert "the training split holds a part of: pairs 3." in text
    assert "train: longer than train.max_length 2" in text
