"""The whole report over a made-up sweep: complete, escaped, and never stopped by a bad file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from synthetic import SCRIPT, build_sweep

from bench.report.build import NoRecordsError, build_report

PNG = b"\x89PNG\r\n"
SECTIONS = [
    "Answer", "Under your limits",
    "Quality against memory and time", "Loss", "Peak training memory", "Memory over training", "Regression",
    "Differences", "Regression by task", "Time, tokens and energy to a target", "Public claims",
    "What differed, what was identical", "Speed", "Memory by phase, GiB", "Wall time", "Sample predictions",
    "Environment", "Failures",
]  # fmt: skip


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := values.get(name))]
        self.ids += [value] if (value := values.get("id")) else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_sweep(tmp_path_factory.mktemp("results") / "synthetic")
    started = time.perf_counter()
    path = build_report(folder)
    assert time.perf_counter() - started < 10
    assert path == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(built: Path) -> Page:
    return Page((built / "report.html").read_text())


def test_every_section_in_order(built: Path) -> None:
    headings = re.findall(r"^## (.*)$", (built / "report.md").read_text(), re.MULTILINE)
    assert headings == SECTIONS


def test_the_answer_has_a_row_a_method_with_intervals(built: Path) -> None:
    text = (built / "report.md").read_text()
    answer = text[text.index("## Answer") : text.index("## Under your limits")]
    rows = [line.split("|")[1:-1] for line in answer.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip(" *") for row in rows] == ["base", "full", "full_bf16", "lora", "qlora"]
    assert re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", rows[1][2])
    base, failed = rows[0], rows[2]
    assert [cell.strip() for cell in base[3:]] == ["-"] * 7
    assert [cell.strip() for cell in failed[1:]] == ["0 of 1"] + ["-"] * 8


def test_html_is_self_contained(page: Page) -> None:
    assert not {"link", "iframe", "object", "img"} & set(page.tags)  # charts stand for the images
    outside = [link for link in page.links if not link.startswith(("#", "tables/"))]
    assert outside == []
    assert page.tags.count("figure") == 6
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_script_of_the_page_is_named_by_its_hash(built: Path) -> None:
    text = (built / "report.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 5  # theme, tables, samples, Vega once, charts
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "unsafe-eval" not in policy
    assert policy.startswith("default-src 'none'")


def test_model_output_is_text(page: Page, built: Path) -> None:
    text = (built / "report.html").read_text()
    assert SCRIPT in page.text
    assert SCRIPT not in text
    assert "synthetic <b>log</b>" in page.text
    assert "<b>log" not in text


def test_html_is_small(built: Path) -> None:
    assert (built / "report.html").stat().st_size < 5_000_000


def test_plots_and_tables_are_written(built: Path) -> None:
    names = sorted(path.name for path in (built / "plots").iterdir())
    figures = ["loss_curves", "memory", "memory_over_steps", "quality_against_cost", "regression"]
    assert names == [f"{figure}.png" for figure in figures]
    assert all(path.read_bytes().startswith(PNG) for path in (built / "plots").iterdir())
    assert len(pd.read_csv(built / "tables" / "runs.csv")) == 8
    comparisons = pd.read_csv(built / "tables" / "comparisons.csv")
    assert {"measure_name", "arm", "baseline", "difference", "low", "high", "p_holm", "verdict"} <= set(comparisons)
    assert len(pd.read_csv(built / "tables" / "regression.csv")) == 7 * 5


def test_memory_by_part_of_a_step_stands_beside_that_by_phase(built: Path) -> None:
    text = (built / "report.md").read_text()
    table = text[text.index("## Memory by phase") : text.index("## Wall time")]
    lines = [line for line in table.splitlines() if line.startswith("| full")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[2:4] for row in rows if row[2].startswith("one step")] == [
        ["one step: forward", "4.10"],
        ["one step: backward", "4.30"],
        ["one step: optimizer", "3.32"],
    ]


def test_failures_come_with_the_next_step(built: Path) -> None:
    text = (built / "report.md").read_text()
    assert text.index("1 run(s) failed") < text.index("## Answer")
    failures = text[text.index("## Failures") :]
    assert "oom in train (exit code 3)" in failures
    assert "Lower train.micro_batch" in failures


def test_the_same_records_give_the_same_report(built: Path, tmp_path: Path) -> None:
    again = tmp_path / "synthetic"
    shutil.copytree(built, again)
    build_report(again)
    assert (again / "report.md").read_text() == (built / "report.md").read_text()


def test_bad_files_become_failures(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "damaged", failed=False)
    runs = sorted(folder.iterdir())
    (runs[1] / "record.json").write_text("{ cut")
    (runs[2] / "samples.jsonl.gz").write_bytes(b"not gzip")
    (runs[3] / "regression_items.jsonl.gz").unlink()
    text = build_report(folder).with_name("report.md").read_text()
    assert "2 run(s) failed or could not be read" in text
    assert "unreadable record" in text


def test_only_corrupt_records_still_give_a_report(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "run"
    run.mkdir(parents=True)
    (run / "record.json").write_text("[]")
    assert "No readable record" in build_report(run.parent).with_name("report.md").read_text()


def test_one_run_alone(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "one", failed=False)
    for run in folder.iterdir():
        if not run.name.startswith("base"):
            shutil.rmtree(run)
    text = build_report(folder).with_name("report.md").read_text()
    assert "Use base" in text
    assert "## Differences" not in text


def test_one_test_example_is_no_obstacle(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "tiny", failed=False)
    for path in [*folder.glob("*/samples.jsonl.gz"), *folder.glob("*/regression_items.jsonl.gz")]:
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).split(b"\n")[0]))
    text = build_report(folder).with_name("report.md").read_text()
    assert "1 test example(s) are too few" in text
    assert "0.900 [-, -]" in text
    assert not re.search(r"\b(inf|nan)\b", text)


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(NoRecordsError, match="run a sweep first"):
        build_report(tmp_path)


def test_command(tmp_path: Path) -> None:
    def command(folder: Path) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[2]
        return subprocess.run(
            [sys.executable, "-m", "bench.report", str(folder)], cwd=root, capture_output=True, text=True, check=False
        )

    empty = command(tmp_path)
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "no run in it" in empty.stderr
    folder = build_sweep(tmp_path / "sweep")
    done = command(folder)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder / "report.html"))
