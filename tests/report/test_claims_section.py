"""The report's section on public claims, over the made-up sweep whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from synthetic import build_sweep

from bench.report.answer import Group, groups_of
from bench.report.build import build_report
from bench.report.claims import expected_text, judged_table, known_claims, measured_text, side_by_side, verdicts_of
from bench.report.load import Problem, load
from bench.stats.claim import Check
from bench.stats.claim_files import from_mappings, read_claims


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_sweep(tmp_path_factory.mktemp("results") / "synthetic")
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def group(built: Path) -> Group:
    (group,) = groups_of(load(built))
    return group


def section_of(folder: Path) -> str:
    text = (folder / "report.md").read_text()
    return text[text.index("## Public claims") : text.index("## What differed")]


def rows_of(section: str) -> dict[str, list[str]]:
    """Of both tables: claims that were judged, and those that were not tested."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [[cell.strip("| ") for cell in line.replace("\\|", "/").split(" | ")] for line in lines]
    return {row[0]: row for row in rows if row[0] != "claim" and not row[0].startswith(":")}


def test_every_claim_has_a_row_with_its_source_and_verdict(built: Path) -> None:
    section = section_of(built)
    rows = rows_of(section)
    assert set(rows) == {claim.id for claim in read_claims()}
    judged = {name: row[3].strip("*") for name, row in rows.items() if len(row) == 6}
    assert set(judged.values()) == {"holds", "does not hold", "inconclusive"}
    assert all(row[3] for name, row in rows.items() if name not in judged)  # why it was not tested
    assert "36 claims: " in section
    assert "Each verdict is about synthetic-135m / docstrings / quick on cpu: synthetic" in section
    assert all(row[2] in {f"({number})" for number in range(1, 6)} for row in rows.values())
    assert "5. " in section[section.index("Sources:") :]


def test_verdicts_follow_from_the_made_up_numbers(built: Path) -> None:
    rows = rows_of(section_of(built))
    expected = {
        "mem-16-bytes": ("holds", "static_bytes_per_parameter, full: 16, expected 15.5 to 16.5"),
        "mem-order": ("holds", "peak_memory_gb, full / lora: 1.94"),
        "speed-qlora-15-25": ("does not hold", "tokens_per_second, 1 - qlora / lora: 0.1 "),
        "speed-full-slowest": ("holds", "tokens_per_second, full / lora: 0.842"),
        "wrong-adapters-4bit": ("does not hold", "trainable_dtype, qlora: float32, expected uint8"),
        "serve-adapter-small": ("holds", "checkpoint_mb, lora: 19.9, expected 1 to 500"),
    }
    for claim, (word, measured) in expected.items():
        assert rows[claim][3].strip("*") == word, claim
        assert rows[claim][4].startswith(measured), claim
    assert rows["speed-qlora-15-25"][5].startswith("29 steps, 2 seeds.")
    assert "smollm" not in rows["mem-lora-7b"][3]
    assert "it is about a model of 6.5 to 7.5 billion parameters" in rows["mem-lora-7b"][3].lower()


def test_claims_that_contradict_each_other_stand_next_to_each_other(built: Path) -> None:
    rows = rows_of(section_of(built))
    names = list(rows)
    for claim in read_claims():
        for other in claim.contradicts:
            if len(rows[claim.id]) == len(rows[other]):  # of the same table
                assert abs(names.index(claim.id) - names.index(other)) == 1
            assert f"Contradicts {other} (" in rows[claim.id][1]
            assert f"Contradicts {claim.id} (" in rows[other][1]


def test_no_claim_is_lost_in_the_order() -> None:
    claims = read_claims()
    assert sorted(c.id for c in side_by_side(claims)) == sorted(c.id for c in claims)


def test_the_table_as_csv_has_a_row_a_check(built: Path) -> None:
    table = pd.read_csv(built / "tables" / "claims.csv")
    assert set(table["claim"]) == {claim.id for claim in read_claims()}
    order = table[table["claim"] == "mem-order"]
    assert list(zip(order["of"], order["against"], strict=True)) == [("full", "lora"), ("lora", "qlora")]
    speed = table[table["claim"] == "speed-qlora-15-25"].iloc[0]
    assert speed["value"] == pytest.approx(0.1, abs=0.005)
    assert (speed["part_verdict"], speed["rests_on"]) == ("does not hold", "29 steps, 2 seeds")


def test_text_of_a_claim_is_shown_as_it_is(group: Group) -> None:
    check = {"quantity": "trainable_share", "of": "lora", "expect": [0, 1]}
    claim = {"id": "mine", "says": "<b>LoRA</b> | *trains*", "checks": [check]}
    table = judged_table(verdicts_of(group, from_mappings({"mine.yaml": {"source": "Mine", "claims": [claim]}})))
    assert r"\<b\>LoRA\</b\> \| \*trains\*" in table


def test_mistakes_in_a_file_of_claims_are_failures_of_the_report_and_do_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("source: Mine\nclaims: [{id: A, says: x, checks: []}]")
    problems: list[Problem] = []
    assert known_claims(problems, tmp_path) == []
    assert [problem.reason.split(":")[1] for problem in problems] == [" A.id", " A.checks"]


def test_without_trained_runs_there_is_no_section(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "base", failed=False)
    for run in folder.iterdir():
        if not run.name.startswith("base"):
            for file in run.iterdir():
                file.unlink()
            run.rmdir()
    assert "Public claims" not in build_report(folder).with_name("report.md").read_text()
    assert set(pd.read_csv(folder / "tables" / "claims.csv")["verdict"]) == {"not tested"}


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Check("score", expect=(0.1, 2000.0)), "0.1 to 2,000"),
        (Check("score", expect=(0.1, None)), "at least 0.1"),
        (Check("score", expect=(None, 48)), "at most 48"),
        (Check("score", above=0), "above 0"),
        (Check("score", below=1.5), "below 1.5"),
        (Check("trainable_dtype", one_of=["int8", "nf4"]), "int8 or nf4"),
    ],
)
def test_what_is_expected_in_words(check: Check, text: str) -> None:
    assert expected_text(check) == text


def test_an_open_end_is_called_so() -> None:
    from bench.analysis.measured import Measured

    found = Measured(10.0, (2.5, float("inf")), None, "2 and 3 rates tried")
    assert measured_text(found) == "10 [2.5, open]"
