"""What was fitted to the memory, and which runs were resumed, is told by the report."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic import build_sweep

from bench.record import Fit, Probe, Record, to_json
from bench.report.build import build_report
from bench.sweep.execute import read_record

GIB = 2**30


def changed(folder: Path, change) -> None:
    for path in folder.glob("*/record.json"):
        content = json.loads(path.read_text())
        if content["train"]:
            change(content)
            path.write_text(json.dumps(content))


def report_of(folder: Path) -> str:
    build_report(folder)
    return (folder / "report.md").read_text()


def fit_of(method: str) -> Fit:
    """Full fine-tuning fits with 2, the others with 8."""
    rows = 2 if method == "full" else 8
    probes = (Probe(rows, True, 3 * GIB, "measured"), Probe(2 * rows, False, None, "oom"))
    return Fit(rows, 4 * GIB, probes, is_largest=method != "lora", key=method, searched_by=f"{method}-0")


def fitted(content: dict) -> None:
    fit = fit_of(content["method"])
    content["fit"] = json.loads(to_json(fit))
    content["train"]["micro_batch"] = fit.micro_batch
    content["config"]["train"]["micro_batch"] = "auto"


def test_fitted_micro_batches_are_shown_and_declared(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "sweep")
    assert "Micro-batches fitted" not in report_of(folder)
    changed(folder, fitted)
    text = report_of(folder)
    section = text[text.index("## Micro-batches fitted") :].partition("\n## ")[0]
    (full,) = [line for line in section.splitlines() if line.startswith("| full")]
    assert [cell.strip() for cell in full.split("|")[2:4]] == ["0, 1", "2"]
    assert "2 (3.00), 4 (out of memory)" in full
    assert "Not shown to be the largest (the search ended after its last probe): lora." in section
    (declared,) = [line for line in text.splitlines() if line.startswith("| measured.micro_batch")]
    assert sorted(declared.replace("|", " ").split()[1:]) == ["-", "2", "8", "8"]
    assert "No comparison was refused." in text
    assert "Micro-batches fitted to the memory of training, within 4.00 GiB: full 2, lora 8, qlora 8." in text


def resumed(content: dict) -> None:
    content["train"]["resumed_at_steps"] = [16] if content["method"] == "lora" else []


def test_a_resumed_run_is_named_beside_its_speed(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "sweep")
    changed(folder, resumed)
    text = report_of(folder)
    assert "- lora, seed 0: behind step 16 of 32" in text
    assert "- full, seed" not in text
    assert isinstance(read_record(next(folder.glob("lora*s0*"))), Record)
