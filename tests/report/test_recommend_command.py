"""`python -m bench.report recommend`: what it prints, what it refuses, and that its thresholds hold as printed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import build_sweep

from bench.analysis.limits import answer_under
from bench.analysis.thresholds import Change, changes
from bench.report.__main__ import main
from bench.report.answer import Group, groups_of
from bench.report.limit_text import answer_text, rounded, threshold, vocabulary
from bench.report.limits import case_of, section
from bench.report.load import load
from bench.stats.limits import Limits, limits_from_words

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sweep(tmp_path_factory.mktemp("results") / "synthetic")


@pytest.fixture(scope="module")
def group(folder: Path) -> Group:
    (group,) = groups_of(load(folder))
    return group


def told(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["recommend", str(folder), *words]) == 0
    return capsys.readouterr().out


def flat(text: str) -> str:
    return " ".join(text.split())


def test_it_says_what_to_use_who_qualifies_and_what_would_change_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(folder, capsys, "memory_gib=3", "adapters=20", "mergeable=yes")
    assert "Limits: memory_gib=3, adapters=20, mergeable=yes" in text
    assert re.search(
        r"^full +no +4.30 \(4.29 to 4.30\): exceeds by 1.29 +yes +no: 20 checkpoints, 10.8 GB$", text, re.M
    )
    assert re.search(r"^full_bf16 +no +more than 4.88 \(out of memory\): exceeds by 1.88", text, re.M)
    assert re.search(r"^lora +yes +2.50 \(2.49 to 2.50\): meets, 0.500 left", text, re.M)
    assert re.search(r"^qlora +cannot decide .* cannot decide +yes", text, re.M)
    assert "What would change the answer, each alone:" in text
    assert "full: memory_gib=4.31 and adapters left out; " in flat(text)
    assert "qlora: merges only into a 16-bit copy of its base" in flat(text)


def test_it_speaks_in_the_units_that_were_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(folder, capsys, "memory_gb=24", "time_hours=2")
    assert "memory, GB" in text
    assert "training, h" in text
    assert "memory_gib" not in text


def test_undecided_is_the_first_thing_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(folder, capsys, "cost_usd=1")
    assert "The data cannot decide. Whether full qualifies is open (cost unknown: give price_usd_per_hour)" in flat(
        text
    )
    assert "is open" not in told(folder, capsys, "cost_usd=1", "price_usd_per_hour=1")


def test_mistakes_are_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(folder / "nowhere"), "memry_gb=24", "adapters=x", "--allow-different=devise"]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert "nowhere: no such folder" in errors
    assert "did you mean 'memory_gb'?" in errors
    assert "adapters=x: expected a whole number" in errors
    assert "--allow-different=devise" in errors


@pytest.mark.parametrize("words", [["memory_gb=24"], ["mergeable"]])
def test_a_folder_is_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", *words]) == 2
    assert re.search("no folder was given|mergeable: a limit needs a value", capsys.readouterr().err)


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(tmp_path)]) == 2
    assert "no run in it" in capsys.readouterr().err


def test_printed_thresholds_hold_as_they_are_printed(group: Group) -> None:
    """Every "word=number" is given to the parser again and must lead to the answer beside it."""
    case, tried = case_of(group), 0
    for words in ([], ["memory_gib=2.4"], ["memory_gb=4", "forgetting_tolerance=3"], ["quality_tolerance=10%"]):
        limits = limits_from_words(words)
        spoken = vocabulary(word.partition("=")[0] for word in words)
        for change in changes(case, limits):
            for text in re.findall(r"=([0-9.]+)| to ([0-9.]+)", threshold(change, spoken)):
                number = "".join(text)
                if change.start is None or float(number) == 0:
                    continue
                name = spoken[change.limit]
                others = [word for word in words if vocabulary([name]).keys() and not same_limit(word, name)]
                asked = limits_from_words([*others, f"{name}={number}"])
                assert answer_under(case, asked) == change.answer, f"{words}: {threshold(change, spoken)}"
                tried += 1
    assert tried > 15


def same_limit(word: str, name: str) -> bool:
    return word.partition("=")[0].partition("_")[0] == name.partition("_")[0]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (2.8606 * 2**30, float("inf"), ("2.87", "inf")),
        (0.0, 2.8606 * 2**30, ("0", "2.86")),
        (2.86 * 2**30, 2.8641 * 2**30, ("2.86", "2.86")),
        (31.4 * 2**20, 96.0 * 2**30, ("0.0307", "95.9")),
    ],
)
def test_rounding_stays_within(start: float, end: float, expected: tuple[str, str]) -> None:
    low, high = rounded(start, end, "memory_bytes", vocabulary())
    assert start <= float(low) * 2**30 <= float(high) * 2**30
    assert float(high) * 2**30 < end or end == float("inf")
    assert (low, high) == expected


def test_a_change_of_a_yes_or_no_in_words(group: Group) -> None:
    answer = answer_under(case_of(group), Limits())
    assert threshold(Change("mergeable", True, answer), vocabulary()) == "without mergeable"
    assert threshold(Change("adapters", False, answer), vocabulary()) == "adapters=2 or more"


def test_the_report_s_section_has_needs_and_the_answer_by_limit(group: Group) -> None:
    text = section(group)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    needs = {line[0]: line for line in lines}
    assert needs["lora"][1] == "2.50 (2.49 to 2.50)"
    assert needs["full_bf16"][1] == "more than 4.88 (out of memory)"
    assert needs["qlora"][-2:] == ["not measured", "19"]
    first, *_, last = [line for line in lines if line[0] == "memory, GiB"]
    assert first[1].startswith("below 2.3")
    assert first[2] == "base (untrained)"
    assert last[1].startswith("from ")
    assert last[2] == answer_text(answer_under(case_of(group), Limits()), case_of(group))
    assert "quality tolerance, score" in needs


def test_the_command_answers_soon_and_without_torch(folder: Path) -> None:
    code = (
        "import sys; from bench.report.__main__ import main\n"
        f"assert main(['recommend', {str(folder)!r}, 'memory_gb=24']) == 0\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 10  # about 2 s on an idle machine
    help_text = subprocess.run(
        [sys.executable, "-m", "bench.report", "recommend", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert "quality_tolerance" in help_text
