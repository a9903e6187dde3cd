"""Sweeps over time: one row a sweep and method, whatever their machines and commits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import build_sweep

from bench.report.__main__ import main
from bench.report.history import history
from bench.report.load import load


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same sweep twice; the second a month later, by another commit, with two seeds at other speeds."""
    root = tmp_path_factory.mktemp("results")
    first, second = (build_sweep(root / name, failed=False) for name in ("january", "february"))
    for path in second.glob("*/record.json"):
        record = json.loads(path.read_bytes())
        record["started_at"] = record["started_at"].replace("2026-01", "2026-02")
        record["provenance"]["git_commit"] = "0123456789abcdef"
        if record["train"]:
            record["train"]["train_tokens_per_second"] *= 2
        path.write_text(json.dumps(record))
    return [first, second]


def test_one_entry_a_sweep_and_method_by_date(folders: list[Path]) -> None:
    entries = history(*reversed(folders))
    assert [(e.sweep, e.arm) for e in entries] == [
        (sweep, arm) for sweep in ("january", "february") for arm in ("base", "full", "lora", "qlora")
    ]
    lora = {e.sweep: e for e in entries if e.arm == "lora"}
    assert lora["february"].values()["tokens/s"] == [1200.0, 1208.0]
    assert lora["january"].values()["tokens/s"] == [600.0, 604.0]
    assert (lora["january"].commit, lora["february"].commit) == ("syntheti", "01234567")


def test_command_writes_a_table_and_a_plot(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--history", *map(str, folders)]) == 0
    assert capsys.readouterr().out.strip() == str(folders[0] / "history.html")
    text = (folders[0] / "history.md").read_text()
    assert "| 2026-02-01 00:00 | february | lora | 01234567 | cpu: synthetic | rougeL | 2 |" in text
    html = (folders[0] / "history.html").read_text()
    assert html.count('<figure class="chart">') == 1
    assert len(html) < 2_000_000


def test_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--history", str(tmp_path)]) == 2
    assert "no run in it" in capsys.readouterr().err


def test_history_compares_nothing(folders: list[Path]) -> None:
    with pytest.raises(SystemExit):
        main(["--history", str(folders[0]), "--target-loss=2"])


def test_the_same_run_of_two_sweeps_is_told(folders: list[Path]) -> None:
    sweep = load(*folders)
    assert len(sweep.records) == 7
    assert len(sweep.problems) == 7
    assert "--history" in sweep.problems[0].next_step
    assert load(folders[0], folders[0]).problems == []
