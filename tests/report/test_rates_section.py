"""The learning-rate section: the curve where a search is known, a warning where none is."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import build_sweep, make_record, make_tuning, with_rate

from bench.analysis.rates import tuning_of
from bench.record import Trial
from bench.report.build import build_report
from bench.report.load import load
from bench.sweep.tuning import keep_tuning

RATES = {"full": (5e-5, 1.25e-4, 2e-5), "lora": (5e-4, 1.25e-3, 2e-4)}


def trials(rates: tuple[float, ...], losses: tuple[float | None, ...], stopped: bool = False) -> list[Trial]:
    return [
        Trial(rate, loss, 20, "hopeless" if stopped and place == 1 else None, 120.0, f"trial-{place}")
        for place, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """full: tuned, one trial ended early; lora: tuned, at an edge; qlora: never searched for."""
    folder = build_sweep(tmp_path_factory.mktemp("results") / "synthetic", failed=False)
    keep_tuning(
        folder / "rates.yaml", make_tuning(make_record("full", 0), trials(RATES["full"], (2.4, 3.9, 2.6), True))
    )
    keep_tuning(folder / "rates.yaml", make_tuning(make_record("lora", 0), trials(RATES["lora"][:2], (2.4, 2.5))))
    build_report(folder)
    return folder, (folder / "report.md").read_text()


def test_the_curve_and_its_table_are_shown(report: tuple[Path, str]) -> None:
    folder, text = report
    assert (folder / "plots" / "learning_rate.png").read_bytes().startswith(b"\x89PNG")
    section = text[text.index("## Learning rate") :]
    section = section[: section.index("\n## ", 5)]
    assert "| full | 5e-05 | 5e-05: 2.400, 0.000125: 3.900 (ended at step 20), 2e-05: 2.600 | 1000 | 6.0 |" in section
    assert "is the lowest that was tried; a lower one may be better" in section
    assert "| qlora" not in section


def test_the_answer_warns_of_the_untuned_and_of_the_edge(report: tuple[Path, str]) -> None:
    answer = report[1][report[1].index("## Answer") : report[1].index("\n## ", report[1].index("## Answer") + 5)]
    assert "Only full and lora ran at a learning rate that was searched for; qlora ran untuned" in answer
    assert "lora: the best learning rate, 0.0005, is the lowest" in answer


def test_without_a_rates_file_every_method_is_untuned(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    build_report(folder)
    text = (folder / "report.md").read_text()
    assert "Learning rates untuned: full, lora and qlora ran at the rate in the configuration." in text
    assert "## Learning rate" not in text


def test_a_damaged_rates_file_costs_nothing_else(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    (folder / "rates.yaml").write_text("tunings: {")
    sweep = load(folder)
    assert sweep.tunings == []
    assert [(problem.run, problem.file) for problem in sweep.problems] == [("synthetic", "rates.yaml")]


def test_a_rate_other_than_the_chosen_is_untuned_though_a_search_is_known() -> None:
    record = make_record("full", 0)
    tuning = make_tuning(record, trials(RATES["full"], (2.4, 2.9, 2.6)))
    assert tuning_of(with_rate(record, 1e-6), [tuning]) is tuning
