"""The section on targets and overfitting, its CSV and the option that sets the target."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import build_sweep

from bench.report.__main__ import main
from bench.report.build import build_report


def section(folder: Path) -> str:
    text = (folder / "report.md").read_text()
    start = text.index("## Time, tokens and energy to a target")
    return text[start : text.index("\n## ", start)]


def rows(text: str, headed: str) -> dict[str, list[str]]:
    """Method -> its other cells, of the table whose header holds these words."""
    lines = text[text.index(headed) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_sweep(tmp_path_factory.mktemp("results") / "synthetic")
    build_report(folder)
    return folder


def test_the_target_is_the_worst_final_loss_and_said_so(built: Path) -> None:
    text = section(built)
    assert "Target: a held-out loss of 2.640 nats per token, the highest final loss of full, lora, qlora." in text
    found = rows(text, "| reached |")
    assert {row[0] for row in found.values()} == {"by 2 of 2 seeds"}
    assert [row[-1] for row in found.values()] == ["16 to 32", "16 to 32", "16 to 32, 32"]
    assert {row[4] for row in found.values()} == {"-"}  # no energy counter


def test_losses_at_equal_tokens_and_time(built: Path) -> None:
    found = rows(section(built), "thousand tokens")
    assert found["full"][0] == found["full"][3] == "2.555 (2.550 to 2.560)"
    assert found["lora"][1] == "2.605 (2.600 to 2.610)"  # lora is the fastest: the others end later
    assert float(found["full"][1].split()[0]) > 2.56


def test_what_fits_into_the_memory(built: Path) -> None:
    found = rows(section(built), "| methods that fit |")
    assert [row[0] for row in found.values()] == ["qlora", "lora, qlora", "full, lora, qlora"]
    assert [row[2] for row in found.values()] == ["2.635 (qlora)", "2.605 (lora)", "2.555 (full)"]


def test_overfitting_and_what_is_missing(built: Path) -> None:
    text = section(built)
    found = rows(text, "| passes over the data |")
    assert found["full"][:2] == ["1.0", "10"]
    assert [found["full"][-2], found["full"][-1]] == ["32", "no"]
    assert "full_bf16, seed 0: in none of these tables; its training did not finish (oom)." in text


def test_one_row_a_run_as_csv(built: Path) -> None:
    table = pd.read_csv(built / "tables" / "targets.csv")
    assert len(table) == 6
    assert table["target_loss"].tolist() == pytest.approx([2.64] * 6)
    assert set(table["reach_status"]) == {"reached"}
    assert table["reach_energy_wh"].isna().all()
    worst = table[(table["arm"] == "qlora") & (table["seed"] == 1)].iloc[0]
    assert (worst["reach_after_step"], worst["reach_by_step"], worst["reach_tokens"]) == (32, 32, 2240 * 32)
    assert {"equal_tokens", "loss_at_equal_seconds", "gap", "lowest_step", "rose", "passes", "unknown"} <= set(table)


def test_a_target_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    assert main([str(folder), "--target-loss=2.605"]) == 0
    text = section(folder)
    assert "Target: a held-out loss of 2.605 nats per token, as given by --target-loss (full, lora, qlora)." in text
    found = rows(text, "| reached |")
    assert [row[0] for row in found.values()] == ["by 2 of 2 seeds", "by 1 of 2 seeds", "never; lowest 2.630"]
    assert found["qlora"][1:] == ["-"] * 5
    capsys.readouterr()


def test_what_may_not_be_compared_has_a_target_of_its_own(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    for path in folder.glob("qlora-*/record.json"):
        record = json.loads(path.read_text())
        record["train"]["data_stream_sha256"] = "other"
        path.write_text(json.dumps(record))
    build_report(folder)
    text = section(folder)
    assert "Target: a held-out loss of 2.610 nats per token, the highest final loss of full, lora." in text
    assert "Target: a held-out loss of 2.640 nats per token, the highest final loss of qlora." in text
    assert text.count("Reached: the first time") == 1
    build_report(folder, allowed=frozenset({"stream"}))
    assert section(folder).count("Target:") == 1


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "low"])
def test_a_target_that_is_no_loss_is_refused(tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), f"--target-loss={given}"])
    assert stopped.value.code == 2
    assert re.search(rf"--target-loss.*{re.escape(given)}", capsys.readouterr().err)
