"""The section on serving says which form to ship, and shows every number it rests on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from served import build_served_sweep
from synthetic import build_sweep

from bench.report.answer import Group, groups_of
from bench.report.build import build_report
from bench.report.load import load
from bench.report.serving import section
from bench.report.serving_plots import figure_of, text_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_served_sweep(tmp_path_factory.mktemp("results") / "served")


@pytest.fixture(scope="module")
def group(folder: Path) -> Group:
    (found,) = groups_of(load(folder))
    return found


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading."""
    lines = text.split(f"### {heading}", 1)[1].splitlines()
    table = [line for line in lines if line.startswith("|")]
    end = next((i for i, line in enumerate(lines) if i > 2 and line and not line.startswith("|")), len(lines))
    table = [line for line in lines[:end] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_advice_comes_first(group: Group) -> None:
    advice = section(group).split("###")[0]
    assert "**lora: ship `merged`**" in advice
    assert "It answers in 0.67 [0.67, 0.67] of the time of `unmerged`, at a score +0.000 [+0.000, +0.000]" in advice
    assert "lora: not shown to be as good as what was evaluated: `merged_nf4`." in advice
    assert "**base" not in advice


def test_every_table_has_its_forms(group: Group) -> None:
    text = section(group)
    forms = rows(text, "Forms")
    assert [row[:2] for row in forms[2:]] == [
        ["base", "base"], ["lora", "base"], ["lora", "unmerged"], ["lora", "merged"], ["lora", "merged_nf4"],
        ["qlora", "base"], ["qlora", "base_nf4"], ["qlora", "unmerged"], ["qlora", "merged"],
    ]  # fmt: skip
    latency = rows(text, "Latency")
    (unmerged,) = [row for row in latency if row[:4] == ["lora", "unmerged", "64", "1"]]
    assert unmerged[4] == "105.0 [100.0, 110.0]"
    assert unmerged[7] == "0.675 / 0.742"
    assert unmerged[8] == "1.50 [1.50, 1.50]"
    fidelity = rows(text, "What merging and quantizing changed")
    (small,) = [row for row in fidelity if row[:2] == ["lora", "merged_nf4"]]
    assert (small[3], small[4]) == ("-0.050 [-0.050, -0.050]", "not shown")
    assert (small[6], small[7], small[10]) == ("4.000 (0.2000)", "-", "88 of 96")
    (unmoved,) = [row for row in fidelity if row[:2] == ["lora", "unmerged"]]
    assert (unmoved[6], unmoved[7]) == ("-", "0.300 (0.0300)")
    assert "largest (mean), by batches of another size: lora 0.060 (0.0040)" in text
    cost = rows(text, "What it costs to run")
    assert all(row[6] == "-" for row in cost[2:])  # no price is set
    (many,) = [row for row in rows(text, "Many adapters on one base") if row[0] == "lora"]
    assert many[1:] == ["0.110 [0.100, 0.120]", "0.010 [0.010, 0.010]", "10", "10.00", "257", "25.7"]


def test_the_figure_of_many_adapters(group: Group) -> None:
    figure = figure_of(group)
    assert figure is not None
    assert len(figure.axes[0].containers) == 2 * 3  # two methods, three ways
    assert "4 requests are shared out" in text_of(group)


def test_the_report_holds_section_plot_and_claims(folder: Path) -> None:
    build_report(folder)
    text = (folder / "report.md").read_text()
    assert re.search(r"^## Serving$", text, re.MULTILINE)
    assert "plots/adapters.png" in text
    assert (folder / "plots" / "adapters.png").stat().st_size > 5000
    for claim, word in (("serve-unmerged-5pct", "does not hold"), ("serve-qlora-larger", "holds")):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {claim} ")]
        assert f"**{word}**" in row


def test_without_serving_there_is_no_section(tmp_path: Path) -> None:
    (plain,) = groups_of(load(build_sweep(tmp_path / "plain", failed=False)))
    assert section(plain) == ""
    assert figure_of(plain) is None
