"""Sections that need more than training: serving, learning rates, public claims, the common target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import build_served_sweep
from synthetic import build_sweep, make_record, make_tuning

from bench.compose import Rates, Trial
from bench.record import to_json
from bench.report.build import report_of
from bench.report.html import page
from bench.report.markdown import render
from bench.report.section import Section
from bench.report.sections import claims, learning, rates, serving
from bench.stats.claims import judge, read_claims
from bench.stats.curves import reach_frame
from bench.stats.frames import Group, Sweep, groups, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Group:
    (group,) = groups(load(build_served_sweep(tmp_path_factory.mktemp("results") / "synthetic")))
    return group


@pytest.fixture(scope="module")
def reference() -> Group:
    (group,) = groups(load(ROOT / "results" / "reference"))
    return group


def rows_of(section: Section | None) -> list[list[str]]:
    assert section is not None
    assert section.table is not None
    return [list(row) for row in section.table.rows]


def test_forms_of_serving_with_their_advice(served: Group) -> None:
    section = serving.section(served)
    forms = {(row[0], row[1]): row[2:] for row in rows_of(section)}
    assert {form for arm, form in forms if arm == "lora"} == {"base", "unmerged", "merged", "merged_nf4"}
    assert forms["lora", "unmerged"][0] == "evaluated"
    assert "ship" in forms["lora", "merged"][0]  # as good, and two thirds of the latency
    assert forms["lora", "merged"][-1].startswith("0.67 [")
    assert forms["lora", "merged_nf4"][3].startswith("-0.050 [")
    assert forms["lora", "merged_nf4"][4] == "not shown"
    assert section is not None
    assert section.chart is not None
    assert set(section.chart.data["requests"]) == {"batch 1, prompt 64", "batch 8, prompt 64"}
    assert [part.title for part in section.parts] == [
        "What each step of shipping costs", "Memory, loading, answers", "Latency and cost by request",
        "Many adapters on one base",
    ]  # fmt: skip
    adapters = rows_of(section.parts[-1])
    assert adapters[0][:2] == ["lora", "0.110"]
    assert adapters[0][-2:] == ["10.00", "257"]


def test_each_step_of_shipping_is_set_against_the_form_before(served: Group) -> None:
    section = serving.section(served)
    assert section is not None
    steps = {(row[0], row[2]): row for row in rows_of(section.parts[0])}
    assert [steps["lora", form][1] for form in ("merged", "merged_nf4")] == ["unmerged", "merged"]
    assert steps["lora", "merged_nf4"][4].startswith("-0.050 [")
    assert steps["qlora", "merged_original"][1] == "unmerged"
    chart = section.parts[0].chart
    assert chart is not None
    assert list(chart.data["pair"]) == [f"{arm}: {form}" for arm, form in steps]
    assert set(chart.data["verdict"]) == {"as good", "not shown to be as good"}


def test_nothing_served_has_no_section(reference: Group) -> None:
    assert serving.section(reference) is None


def test_searches_of_learning_rates(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    trials = [
        Trial(1e-4, 2.6, 20, 60.0, "a"),
        Trial(5e-4, 2.4, 20, 60.0, "b"),
        Trial(2e-3, None, 3, 20.0, "c"),
    ]
    content = Rates([make_tuning(make_record("lora", 0), trials)])
    (folder / "rates.yaml").write_text(to_json(content))  # JSON is YAML
    (group,) = groups(load(folder))
    section = rates.section(group)
    assert rows_of(section)[0][:4] == ["lora", "0.0005", "3", "2.3"]
    assert section is not None
    assert section.chart is not None
    drawn = section.chart.data.set_index("learning rate")
    assert drawn["chosen"].to_dict() == {1e-4: "no", 5e-4: "yes", 2e-3: "no"}
    assert drawn.at[2e-3, "loss"] > 2.6  # drawn at the upper edge
    assert any("full" in remark and "untuned" in remark for remark in section.items)


def test_untuned_rates_are_said(reference: Group) -> None:
    section = rates.section(reference)
    assert section is not None
    assert section.fold
    assert "Learning rates untuned: full, lora and qlora" in section.lead


def test_claims_are_counted_judged_and_explained(reference: Group) -> None:
    section, verdicts = claims.section(reference), judge(reference, read_claims())
    assert section is not None
    counts = Counter(verdict.word for verdict in verdicts)
    assert section.lead.startswith(f"{len(verdicts)} public claims: {counts['holds']} hold, ")
    judged, untested = section.parts
    assert len({row[0] for row in rows_of(judged)}) == len(verdicts) - counts["not tested"]
    assert len(rows_of(judged)) == sum(len(verdict.parts) for verdict in verdicts if verdict.word != "not tested")
    assert len(rows_of(untested)) == counts["not tested"]
    assert all(row[2] for row in rows_of(untested))  # each with its reason
    predicted = [verdict for verdict in verdicts if verdict.predicted]
    assert len({row[0] for row in rows_of(judged) if "(predicted)" in row[2]}) == len(predicted) > 0
    assert all(f"({place})" in section.note for place in range(1, len({v.claim.source for v in verdicts}) + 1))


def test_claims_that_contradict_one_another_stand_side_by_side(reference: Group) -> None:
    verdicts = claims.side_by_side(claims.verdicts_of(reference)[0])
    assert sorted(v.claim.id for v in verdicts) == sorted(claim.id for claim in read_claims())
    place = {verdict.claim.id: number for number, verdict in enumerate(verdicts)}
    pairs = [(verdict.claim.id, other) for verdict in verdicts for other in verdict.claim.contradicts]
    assert [abs(place[own] - place[other]) for own, other in pairs] == [1] * len(pairs) != []


def test_a_broken_file_of_claims_is_a_line_of_the_report(
    reference: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("source: Mine\nclaims: [{id: mine, says: Yes., checks: [scor(lora) > 0]}]")
    monkeypatch.setattr(claims, "read_claims", lambda: read_claims(tmp_path))
    (group,) = groups(reference.sweep)
    section = claims.section(group)
    assert section is not None
    assert section.lead.startswith(
        "Not judged, since the files of claims have mistakes: mine.yaml: mine.checks.0: no qu"
    )
    assert claims.verdicts_frame(group).empty


def test_the_common_target_and_the_common_ends(reference: Group) -> None:
    section, frame = learning.section(reference), reach_frame(reference)
    assert section is not None
    (reached,) = section.parts
    assert reached.title == f"Until a held-out loss of {frame['target'].iloc[0]:.3f} nats/token"
    rows = {row[0]: row[1:] for row in rows_of(reached)}
    tokens = frame[frame["arm"] == "lora"]["tokens"] / 1e3
    assert rows["lora"][0] == "3 of 3 seeds"
    assert rows["lora"][1] == f"{tokens.mean():.1f} ({tokens.min():.1f} to {tokens.max():.1f})"
    (group,) = groups(reference.sweep, target_loss=0.5)
    never = learning.section(group)
    assert never is not None
    assert {row[1] for row in rows_of(never.parts[0])} == {"0 of 3 seeds"}


HOLES: dict[str, Callable[[Sweep], Any]] = {
    "steps": lambda sweep: sweep.step_rows.clear(),
    "test answers": lambda sweep: sweep.sample_rows.clear(),
    "scores": lambda sweep: [replace_all(rows, scores={}) for rows in sweep.sample_rows.values()],
    "items": lambda sweep: sweep.regression_rows.clear(),
    "training": lambda sweep: replace_all(sweep.records, train=None),
    "evaluation": lambda sweep: replace_all(sweep.records, evaluate=None),
    "forms": lambda sweep: replace_all(
        sweep.records, serve=lambda record: record.serve and replace(record.serve, forms=[])
    ),
    "served answers": lambda sweep: sweep.answer_rows.clear(),
}


def replace_all(rows: list[Any], **changes: Any) -> None:
    """Change every row of a list in place; a function makes the new value from the row."""
    rows[:] = [replace(r, **{name: v(r) if callable(v) else v for name, v in changes.items()}) for r in rows]


@pytest.mark.parametrize("hole", HOLES)
def test_records_with_holes_have_a_report(tmp_path: Path, hole: str) -> None:
    sweep = load(build_served_sweep(tmp_path / "synthetic"))
    HOLES[hole](sweep)
    report = report_of(sweep, groups(sweep))
    assert page(report).count("<h1") == 1
    assert render(report, {}).startswith("# ")
