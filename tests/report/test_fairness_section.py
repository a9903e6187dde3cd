"""The report says what was compared in spite of what, what was refused, and which runs had company."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import build_sweep

from bench.record import Environment, Record, from_json, to_json
from bench.report.__main__ import main
from bench.report.build import build_report


def change(folder: Path, method: str, *stages: str, **environment: object) -> Path:
    """Rewrite what the runs of a method say of where they ran."""
    for path in folder.glob(f"{method}-*/record.json"):
        record = from_json(Record, path.read_bytes())
        for name in stages:
            stage = getattr(record, name)
            changed: Environment = replace(stage.environment, **environment)
            record = replace(record, **{name: replace(stage, environment=changed)})
        path.write_text(to_json(record))
    return folder


@pytest.fixture
def two_machines(tmp_path: Path) -> Path:
    """LoRA ran elsewhere, with one thread."""
    folder = build_sweep(tmp_path / "sweep", failed=False)
    return change(folder, "lora", "train", "evaluate", device="cpu: another", threads=1)


def text_of(folder: Path, *allowed: str) -> str:
    return build_report(folder, allowed=frozenset(allowed)).with_name("report.md").read_text()


def test_a_refusal_says_how_it_could_be_allowed(two_machines: Path) -> None:
    text = text_of(two_machines)
    refused = text[text.index("Not compared") : text.index("### Identical settings")]
    assert re.search(
        r"\| lora \| full \| 0, 1 \| .* different device \(cpu: synthetic and cpu: another\)", refused
    ) or ("different device (cpu: another and cpu: synthetic) | device |" in refused)
    assert "threads (1 and 2) | threads |" in refused
    assert "Compared in spite" not in text


def test_an_exception_is_the_first_thing_one_reads(two_machines: Path) -> None:
    text = text_of(two_machines, "device", "threads", "budget")
    head = text[: text.index("## Answer")]
    assert "by `--allow-different=budget,device,threads`: these comparisons are not of like with like" in head
    assert "| lora | full | 0, 1 | device | they were trained and evaluated with different device" in head
    assert "| qlora | lora | 0, 1 | threads |" in head
    assert "| lora | base | 0, 1 | device |" in head
    assert "Allowed to differ, but no comparison needed it: budget." in text
    differences = text[text.index("## Differences") : text.index("## Regression by task")]
    assert re.search(r"\| lora \| full \| rougeL \| .*\(different device, threads\) \|", differences)
    assert not re.search(r"\| qlora \| full \| .*different", differences)


def test_one_exception_of_two_is_not_enough(two_machines: Path) -> None:
    text = text_of(two_machines, "device")
    assert "Compared in spite" not in text
    assert "threads (1 and 2) | threads |" in text


def test_the_files_say_it_too(two_machines: Path) -> None:
    text_of(two_machines, "device", "threads")
    (group,) = json.loads((two_machines / "fairness.json").read_text())
    assert group["allowed_different"] == ["device", "threads"]
    assert {(e["arm"], e["baseline"], e["name"]) for e in group["exceptions"]} >= {("lora", "full", "device")}
    assert group["refusals"] == []
    assert group["different"]["measured.threads"]["lora"] == "1"
    rows = pd.read_csv(two_machines / "tables" / "comparisons.csv")
    assert set(rows[(rows["arm"] == "lora")]["differing"]) == {"('device', 'threads')"}


def test_an_exception_holds_for_one_report(two_machines: Path) -> None:
    text_of(two_machines, "device", "threads")
    assert "Compared in spite" not in text_of(two_machines)
    (group,) = json.loads((two_machines / "fairness.json").read_text())
    assert (group["allowed_different"], group["exceptions"]) == ([], [])
    assert len(group["refusals"]) > 0


def test_the_command(two_machines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(two_machines), "--allow-different=device,threads"]) == 0
    assert "Compared in spite" in (two_machines / "report.md").read_text()
    assert main(["--allow-different", "devise,moon", str(two_machines)]) == 2
    errors = capsys.readouterr().err
    assert "did you mean 'device'" in errors
    assert errors.count("allowed: budget, device, hardware, model, numerics") == 2
    assert main([str(two_machines), "--allow-different="]) == 2


def test_help_names_what_can_be_allowed_without_loading_pandas() -> None:
    code = (
        "import sys; from bench.report.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "numerics:" in done.stdout


def test_a_busy_run_is_marked_and_still_compared(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "sweep", failed=False)
    change(folder, "*", "evaluate", other_cpu_cores=0.01, stolen_cpu_cores=0.0, cpus=2)
    change(folder, "[fq]*", "train", other_cpu_cores=0.01, stolen_cpu_cores=0.0, cpus=2)
    change(folder, "lora", "train", other_cpu_cores=0.8, stolen_cpu_cores=0.04, cpus=2)
    text = text_of(folder)
    answer = text[text.index("## Answer") : text.index("## Under your limits")]
    assert "Measured while others used the machine: lora (see Speed)" in answer
    rows = {line.split("|")[1].strip(" *"): line for line in answer.splitlines() if line.startswith("|")}
    assert rows["lora"].count("(busy)") == 2
    assert "busy" not in rows["full"]
    speed = text[text.index("## Speed") : text.index("## Memory by phase")]
    assert re.search(r"\| lora \(busy\) \|.*\| 0\.84 \|", speed)
    assert re.search(r"\| full \|.*\| 0\.01 \|", speed)
    assert "- lora, seed 0, train: other processes used 0.80 of its 2 processors and the hypervisor took 0.04" in speed
    assert "No comparison was refused." in text
    (group,) = json.loads((folder / "fairness.json").read_text())
    assert [list(stages) for stages in group["busy"].values()] == [["train"], ["train"]]


def test_load_that_is_not_known_is_no_load(tmp_path: Path) -> None:
    text = text_of(build_sweep(tmp_path / "sweep", failed=False))
    assert "(busy)" not in text
    assert re.search(r"\| lora \|.*\| - \|\n", text[text.index("## Speed") :])
