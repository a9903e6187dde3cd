"""The files of public claims: all of them are read, and every mistake is told at once with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.config import ConfigurationError
from bench.stats.claim import Check
from bench.stats.claim_files import CLAIMS_FOLDER, from_mappings, read_claims

PUBLIC = {  # the claims that the harness set out to test
    "mem-order", "mem-16-bytes", "mem-full-7b-24gb", "mem-lora-7b", "mem-qlora-7b", "mem-qlora-8b-base", "mem-nf4-4x",
    "mem-double-quant", "mem-peft-saves-90", "mem-65b-48gb", "speed-qlora-15-25", "speed-qlora-30-50",
    "speed-full-fastest", "speed-full-slowest", "speed-full-vs-qlora", "speed-equal-memory", "params-below-1pct",
    "params-r8-7b", "size-adapter", "cost-8b", "cost-99-for-10", "quality-lora-1-3", "quality-qlora-lora",
    "quality-rouge", "quality-all-linear", "quality-rank-64", "quality-lr", "quality-high-rank", "forget-order",
    "forget-instructions", "serve-merge-exact", "serve-unmerged-5pct", "serve-qlora-larger", "serve-adapter-small",
    "serve-adapter-swap", "wrong-adapters-4bit",
}  # fmt: skip


def a_claim(**changes: Any) -> dict[str, Any]:
    check = {"quantity": "trainable_share", "of": "lora", "expect": [0, 0.01]}
    return {"id": "mine", "says": "LoRA trains little.", "checks": [check]} | changes


def problems_of(*claims: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        from_mappings({"mine.yaml": {"source": "Mine", "claims": list(claims)}})
    return caught.value.problems


def test_every_public_claim_is_there_with_its_source() -> None:
    claims = read_claims()
    assert {claim.id for claim in claims} == PUBLIC
    assert all(len(claim.source) > 20 for claim in claims)


def test_claims_that_contradict_each_other_are_marked() -> None:
    pairs = {frozenset((claim.id, other)) for claim in read_claims() for other in claim.contradicts}
    assert pairs == {
        frozenset(("mem-full-7b-24gb", "mem-16-bytes")),
        frozenset(("speed-qlora-15-25", "speed-qlora-30-50")),
        frozenset(("speed-full-fastest", "speed-full-slowest")),
    }


def test_a_claim_about_a_model_of_some_size_says_so() -> None:
    needs = {claim.id: claim.needs.parameters for claim in read_claims()}
    assert {name for name, parameters in needs.items() if parameters} == {
        "mem-full-7b-24gb", "mem-lora-7b", "mem-qlora-7b", "mem-qlora-8b-base", "mem-65b-48gb", "params-r8-7b",
        "size-adapter", "cost-8b",
    }  # fmt: skip


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("claims: [")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"source": "B", "claims": [a_claim(say="typo")]}))
    (tmp_path / "c.yaml").write_text("")
    checks = [
        {"quantity": "tokens_per_secnd", "of": "lora", "above": 1},
        {"quantity": "score", "of": "lorra", "above": 0},
        {"quantity": "score", "of": {"method": "lora", "rang": 8}, "above": 0},
    ]
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"source": "D", "claims": [a_claim(checks=checks)]}))
    with pytest.raises(ConfigurationError) as caught:
        read_claims(tmp_path)
    text = "\n".join(caught.value.problems)
    assert "a.yaml: not YAML" in text
    assert "b.yaml: mine.say: no such key (did you mean 'says'?)" in text
    assert "c.yaml: the file: " in text
    assert "d.yaml: mine.checks.0.quantity: input should be 'peak_memory_gb', " in text
    assert "given 'tokens_per_secnd'" in text
    assert "d.yaml: mine.checks.1.of.method: input should be 'base'" in text
    assert "d.yaml: mine.checks.2.of.rang: no such key (did you mean 'rank'?)" in text
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ({"quantity": "score", "of": "lora"}, "no expectation given"),
        ({"quantity": "score", "of": "lora", "above": 0, "below": 1}, "above and below given"),
        ({"quantity": "score", "above": 0}, "of: missing"),
        ({"quantity": "score", "of": "lora", "against": "full", "above": 0}, "form: 'value' and against: 'full'"),
        ({"quantity": "score", "of": "lora", "form": "ratio", "above": 0}, "form: 'ratio' and against: None"),
        ({"quantity": "score", "order": "full >= lora"}, "order: 'full >= lora' is not of the form"),
        ({"quantity": "score", "order": "full"}, "order: 'full' is not of the form"),
        ({"quantity": "score", "order": "full > lora", "of": "lora"}, "order names the methods itself"),
        ({"quantity": "score", "of": "lora", "expect": [2, 1]}, "expect: [2.0, 1.0] holds no number"),
        ({"quantity": "score", "of": "lora", "expect": [0, None], "by": "equivalence"}, "by: equivalence needs"),
        ({"quantity": "score", "of": "lora", "one_of": ["int8"]}, "one_of: for quantity trainable_dtype"),
        ({"quantity": "test_loss", "of": "lora", "above": 0, "metric": "bleu"}, "metric: only for quantity score"),
        ({"quantity": "regression_drop", "of": "lora", "above": 0}, "a drop is one against another arm"),
    ],
)
def test_keys_that_do_not_go_together(check: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(a_claim(checks=[check]))
    assert found.startswith(f"mine.yaml: mine.checks.0: {problem}")


def test_ids_are_one_of_a_kind_and_contradictions_exist() -> None:
    assert problems_of(a_claim(), a_claim()) == ["mine: two claims have this id; give each its own"]
    (unknown,) = problems_of(a_claim(contradicts=["mein"]))
    assert unknown.startswith("mine.contradicts: no claim 'mein' (did you mean 'mine'?)")


def test_an_order_is_taken_apart_into_neighbours() -> None:
    assert Check("peak_memory_gb", order="full > lora > qlora").pairs() == [
        ("full", ">", "lora"),
        ("lora", ">", "qlora"),
    ]
    assert Check("tokens_per_second", order="full < lora, qlora").pairs() == [
        ("full", "<", "lora"),
        ("full", "<", "qlora"),
    ]


def test_short_forms_mean_the_long_ones() -> None:
    short, long = from_mappings(
        {
            "mine.yaml": {
                "source": "Mine",
                "claims": [
                    a_claim(),
                    a_claim(
                        id="long",
                        source="Yours",
                        checks=[
                            {"quantity": "trainable_share", "of": {"method": "lora", "rank": 8}, "expect": [0, 0.01]}
                        ],
                    ),
                ],
            }
        }
    )
    assert (short.source, long.source) == ("Mine", "Yours")
    assert short.checks[0].of is not None
    assert short.checks[0].of.method == "lora"
    assert long.checks[0].of is not None
    assert long.checks[0].of.rank == (8, 8)


def test_no_claims_file_is_outside_the_folder() -> None:
    assert {path.suffix for path in CLAIMS_FOLDER.iterdir()} == {".yaml"}
