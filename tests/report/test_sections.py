"""The sections say what the statistics say: on the committed sweep, and on planted ones."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import ATTACK, STEPS, build_sweep

from bench.mistakes import ConfigurationError
from bench.outcome import Status
from bench.record import DataCheck, Expected, Record, from_json, to_json
from bench.report.build import read_groups, report_of, write_report
from bench.report.section import Section, Table
from bench.report.sections import (
    SECTIONS,
    answer,
    data,
    environment,
    examples,
    fairness,
    forgetting,
    learning,
    memory,
    quality,
    speed,
)
from bench.stats.compare import compare
from bench.stats.decide import decide
from bench.stats.frames import Group, groups, load
from bench.stats.limits import limits_from_words

ROOT = Path(__file__).parents[2]
CHECK = DataCheck([], 0, [], 0, {}, 1.0, 1, 1.0, 9, "a", 1, None)


@pytest.fixture(scope="module")
def reference() -> Group:
    (group,) = groups(load(ROOT / "results" / "reference"))
    return group


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Group:
    (group,) = groups(load(build_sweep(tmp_path_factory.mktemp("results") / "synthetic")))
    return group


def planted(folder: Path, which: str, change: Callable[[Record], Record]) -> Path:
    """A copy of the made-up sweep with some of its records changed."""
    build_sweep(folder, failed=False)
    for path in folder.glob(f"{which}/record.json"):
        path.write_text(to_json(change(from_json(Record, path.read_bytes()))))
    return folder


def cells(table: Table | None) -> dict[str, list[str]]:
    """First cell -> the others."""
    assert table is not None
    return {row[0]: list(row[1:]) for row in table.rows}


def part(section: Section | None, title: str) -> Section:
    assert section is not None
    return next(found for found in section.parts if found.title == title)


def test_the_first_screen_says_what_was_decided(reference: Group) -> None:
    decision, section = decide(reference), answer.section(reference)
    assert section.headline is not None
    assert (section.headline.sentence, section.headline.sureness) == (decision.sentence, decision.sureness)
    assert section.table is not None
    assert section.table.headers == ["method", "rougeL", "peak memory, GiB", "training, min"]
    arms = reference.arms.set_index("arm")
    for arm, (score, peak, time) in cells(section.table).items():
        assert score.split()[0] == f"{arms.at[arm, 'score']:.3f}"
        known = not arms.at[arm, "untrained"]
        assert peak == (f"{arms.at[arm, 'peak_memory_bytes'] / 2**30:.2f}" if known else "-")
        assert time == (f"{arms.at[arm, 'train_seconds'] / 60:.1f}" if known else "-")
    (chosen,) = section.table.bold
    assert section.table.rows[chosen][0] == decision.arm
    assert section.chart is not None
    assert dict(zip(section.chart.data["arm"], section.chart.data["chosen"], strict=True))[str(decision.arm)] == "yes"


def test_limits_change_the_answer_and_the_sentence(reference: Group) -> None:
    most = reference.arms.set_index("arm").at["full", "peak_memory_bytes"] / 2**30
    limits = limits_from_words([f"memory_gib={most - 1}"])
    section = answer.section(reference, limits)
    assert section.headline is not None
    assert section.headline.sentence == decide(reference, limits).sentence != "Use full."
    nothing = limits_from_words(["memory_gib=0.001", "mergeable=yes", "quality_tolerance=0"])
    found = answer.section(reference, nothing)
    assert found.headline is not None
    assert found.headline.sentence == decide(reference, nothing).sentence


def test_what_would_change_the_answer(reference: Group) -> None:
    section = answer.change(reference)
    assert section is not None
    assert section.chart is not None
    data = section.chart.data
    assert {"tolerance, rougeL", "memory limit, GiB", "time limit, hours"} <= set(data["limit"])
    of_memory = data[data["limit"] == "memory limit, GiB"]
    assert (of_memory["start"].iloc[1:].to_numpy() == of_memory["end"].iloc[:-1].to_numpy()).all()
    for row in of_memory.iloc[::12].to_dict("records"):
        found = decide(reference, limits_from_words([f"memory_gib={row['start']}"]))
        assert (row["arm"], row["sureness"]) == (found.arm or "none", pytest.approx(found.sureness))
    assert list(cells(section.table)) == list(decide(reference).arms["arm"])


def test_differences_with_their_verdicts(reference: Group) -> None:
    section, found = quality.section(reference), compare(reference).comparisons
    assert section is not None
    assert section.table is not None
    primary = found[found["family"] == "primary score"]
    assert [tuple(row[:2]) for row in section.table.rows] == list(zip(primary["arm"], primary["baseline"], strict=True))
    assert [row[3] for row in section.table.rows] == list(primary["verdict"])
    assert section.chart is not None
    assert not any("base" in pair for pair in section.chart.data["pair"])  # too large for the same axis
    metrics = cells(part(section, "Every metric").table)
    assert set(metrics["exact_match"]) == {"+0.000"}
    equal = found[found["measure"] == "exact_match"]
    assert set(equal["verdict"]) == {"equal"}  # not "not settled"
    losses = found[(found["kind"] == "loss") & (found["verdict"] == "worse")]
    assert sum(text.endswith("*") for text in metrics["test loss, nats/token"]) >= len(losses) > 0


def test_curves_are_means_with_the_range_of_the_seeds(made_up: Group) -> None:
    section = learning.section(made_up)
    assert section is not None
    assert section.chart is not None
    curves = section.chart.data
    held = curves[(curves["arm"] == "full") & (curves["kind"] == "held-out")]
    assert list(held["optimizer step"]) == [0, 8, 16, STEPS]
    assert tuple(held.iloc[-1][["low", "loss", "high"]]) == pytest.approx((2.55, 2.555, 2.56))
    assert len(curves[(curves["arm"] == "full") & (curves["kind"] == "training")]) == STEPS


def test_the_parts_of_memory_add_up_to_the_peak(reference: Group) -> None:
    section = memory.section(reference)
    assert section is not None
    assert section.chart is not None
    parts = section.chart.data
    measured = parts[parts["source"] == "measured"]
    total = measured.groupby("arm")["GiB"].sum()
    peaks = reference.arms.set_index("arm")["peak_memory_bytes"].dropna() / 2**30
    assert total.to_dict() == pytest.approx(peaks.to_dict())
    phases = part(section, "Memory by phase").table
    assert phases is not None
    highest = max(float(row[3]) for row in phases.rows if row[:2] == ["full", "train"])
    assert highest == pytest.approx(
        reference.runs.set_index("arm").loc["full", "peak_memory_bytes"].max() / 2**30, abs=0.01
    )


def test_speed_leaves_out_what_nobody_measured(reference: Group, made_up: Group) -> None:
    for group in (reference, made_up):
        section = speed.section(group)
        assert section is not None
        assert section.table is not None
        assert "cost, USD" not in section.table.headers  # no price was set
        assert all(any(row[place] != "-" for row in section.table.rows) for place in range(len(section.table.headers)))
    assert cells(speed.section(reference).table)["lora"][0].startswith("419 (")  # type: ignore[union-attr]


def test_a_busy_machine_is_named(tmp_path: Path) -> None:
    def busy(record: Record) -> Record:
        assert record.train
        environment = replace(record.train.environment, cpus=2, other_cpu_cores=0.8)
        return replace(record, train=replace(record.train, environment=environment))

    (group,) = groups(load(planted(tmp_path / "busy", "lora-*-s1-*", busy)))
    section = speed.section(group)
    assert section is not None
    assert "in 1 of the stages" in section.lead
    (row,) = next(part for part in section.parts if part.title == "Shared machine").table.rows
    assert row[1:] == ("1", "train", "other processes used 0.80 of its 2 processors")


def test_forgetting_is_against_the_base_in_points(reference: Group) -> None:
    section, found = forgetting.section(reference), compare(reference).comparisons
    assert section is not None
    assert section.chart is not None
    tasks = found[(found["kind"] == "regression") & found["higher_is_better"] & (found["baseline"] == "base")]
    assert section.chart.data["change"].to_list() == pytest.approx((100 * tasks["difference"]).to_list())
    mean = tasks[tasks["family"] == "suite's mean"].set_index("arm")
    for arm, (text, verdict) in cells(section.table).items():
        assert text.startswith(f"{100 * mean.at[arm, 'difference']:+.1f} [")
        assert verdict == mean.at[arm, "verdict"]
    assert [found.title for found in section.parts] == ["General text", "Distance from the base's predictions"]


def test_examples_on_which_methods_differ_most_come_first(made_up: Group) -> None:
    section = examples.section(made_up)
    assert section is not None
    assert section.examples is not None
    found = section.examples
    assert list(found.arms) == ["base", "full", "lora", "qlora"]
    spreads = [row[3] for row in found.rows]
    assert spreads == sorted(spreads, reverse=True)
    assert sorted(found.places) == list(range(len(found.rows)))
    trained = [answer[2] for answer in found.rows[0][4][1:]]
    assert spreads[0] == pytest.approx(max(trained) - min(trained), abs=1e-3)  # the base's score does not count
    attacked = next(row for row in found.rows if row[0] == "example-0")
    assert ATTACK in attacked[4][1][0]


def test_what_differed_and_what_was_refused(reference: Group, tmp_path: Path) -> None:
    section = fairness.section(reference)
    assert section.fold
    different, identical = (cells(part(section, f"What {word}").table) for word in ("differed", "was identical"))
    assert different["method.trains"] == ["nothing", "all_weights", "adapter", "adapter"]
    assert identical["task.name"] == ["docstrings"]
    assert not set(different) & set(identical)

    def other_device(record: Record) -> Record:
        assert record.train
        environment = replace(record.train.environment, device="cuda: another")
        return replace(record, train=replace(record.train, environment=environment))

    folder = planted(tmp_path / "refused", "lora-*", other_device)
    (group,) = groups(load(folder))
    refused = fairness.section(group)
    assert not refused.fold
    assert any("device" in row for row in part(refused, "Not compared").table.rows)  # type: ignore[union-attr]
    (allowed,) = groups(load(folder), allowed=frozenset({"device"}))
    titles = [found.title for found in fairness.section(allowed).parts]
    assert "Compared in spite of a difference, as asked" in titles


def test_failures_are_told_with_the_next_step(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic")
    (next(folder.glob("qlora-*-s0-*")) / "record.json").write_text("{")
    failures, facts, terms = environment.sections(load(folder))
    assert not failures.fold
    oom, unreadable = failures.parts
    assert "oom in train" in oom.lead
    assert "Next step: " in oom.lead
    assert "synthetic <b>log</b>" in oom.code
    assert "unreadable record" in unreadable.lead
    assert cells(facts.table)["device"] == ["cpu: synthetic"]
    assert {"tolerance", "cheapest", "interval"} <= set(cells(terms.table))
    whole = environment.sections(load(build_sweep(tmp_path / "whole", failed=False)))[0]
    assert (whole.lead, whole.fold) == ("None.", True)


def test_a_sweep_in_which_everything_failed_has_a_report(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic")
    for path in folder.iterdir():
        record = from_json(Record, (path / "record.json").read_bytes())
        if record.status is Status.OK:
            shutil.rmtree(path)
    page = write_report(*read_groups(folder)).read_text()
    assert "oom in train" in page
    assert "Nothing can be decided." in page


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no run in it"):
        write_report(*read_groups(tmp_path))
    with pytest.raises(FileNotFoundError):
        write_report(*read_groups(tmp_path / "absent"))


def test_controls_are_in_the_tables_and_not_in_the_charts(tmp_path: Path) -> None:
    def wrecked(record: Record) -> Record:
        return replace(record, config=replace(record.config, method=replace(record.config.method, control=True)))

    (group,) = groups(load(planted(tmp_path / "synthetic", "full-*", wrecked)))
    sections = [answer.section(group), answer.change(group), *(make(group) for make in SECTIONS)]
    charts = [section.chart for section in sections if section and section.chart]
    assert charts
    assert all("full" not in set(chart.data.get("arm", [])) for chart in charts)
    assert "full" in cells(memory.section(group).table)  # type: ignore[union-attr]


def test_an_arm_of_one_seed_is_marked_in_every_table(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic")
    for run in folder.glob("lora-*-s1-*"):
        shutil.rmtree(run)
    sweep = load(folder)
    sections = report_of(sweep, groups(sweep)).chapters[0].parts
    tables = [part for section in sections for part in (section, *section.parts) if part.table]
    naming = [part for part in tables if any("lora (1 seed)" in row[0] for row in part.table.rows)]
    assert {"Answer", "What would change it", "Quality", "Scores and losses", "Forgetting"} <= {s.title for s in naming}
    assert all("(1 seed): another seed may turn what is said of it." in part.note for part in naming)
    assert not any(row[0] in ("lora", "full (1 seed)", "base (1 seed)") for part in tables for row in part.table.rows)
    quality = next(part for part in tables if part.title == "Quality")
    assert ["qlora", "lora (1 seed)"] in [list(row[:2]) for row in quality.table.rows]
    assert any(text.startswith("One seed of lora:") for text in sections[0].headline.asides)


def test_several_sweeps_make_one_report_with_an_overview(tmp_path: Path) -> None:
    def other(record: Record) -> Record:
        task = replace(record.config.task, name="summaries")
        return replace(record, run_id=record.run_id.replace("docstrings", "summaries"), task="summaries",
                       config=replace(record.config, task=task))  # fmt: skip

    first, second = build_sweep(tmp_path / "a", failed=False), planted(tmp_path / "b", "*", other)
    for path in list(second.iterdir()):
        path.rename(second / path.name.replace("docstrings", "summaries"))
    page = write_report(*read_groups(first, second)).read_text()
    report = report_of(load(first, second), groups(load(first, second)))
    titles = [chapter.title for chapter in report.chapters]
    assert [title.split(" / ")[1] if "/" in title else title for title in titles] == [
        "Overview", "docstrings", "summaries",
    ]  # fmt: skip
    overview = report.chapters[0].parts[0].table
    assert overview is not None
    assert [row[1] for row in overview.rows] == [decide(group).sentence for group in groups(load(first, second))]
    assert page.count('class="answer"') == 2
    images = [path.name for path in (first / "plots").iterdir()]
    assert sum("summaries" in name for name in images) == sum("docstrings" in name for name in images) > 0


def test_tables_and_formats(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic")
    write_report(*read_groups(folder), formats=frozenset({"latex", "parquet", "png"}))
    tables = {path.name for path in (folder / "tables").iterdir()}
    assert {"runs.csv", "arms.csv", "decision.csv", "comparisons.csv", "runs.tex", "runs.parquet"} <= tables
    assert (folder / "plots" / "quality.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text()
    for path in (folder / "plots").glob("*.svg"):
        assert f"(plots/{path.name})" in text


def test_torn_details_lose_only_themselves(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    torn = next(folder.glob("lora-*-s0-*")) / "samples.jsonl.gz"
    whole = gzip.decompress(torn.read_bytes()).splitlines()
    torn.write_bytes(gzip.compress(b"\n".join(whole))[:-30])
    page = write_report(*read_groups(folder)).read_text()
    assert "samples.jsonl.gz" in page
    assert json.loads(whole[0])["example_id"] == "example-0"


@pytest.mark.parametrize(
    ("available", "says"),
    [
        ({}, ""),
        (dict.fromkeys(("capitals", "continents"), 60), ""),
        (
            {"capitals": 60, "continents": 1200},
            "60 of 60 to 1,200 items of each task (bounded by suite.items_per_task).",
        ),
    ],
)
def test_a_bounded_suite_says_so(tmp_path: Path, available: dict[str, int], says: str) -> None:
    def counted(record: Record) -> Record:
        assert record.regression
        tasks = [replace(task, items_available=available.get(task.task)) for task in record.regression.tasks]
        return replace(record, regression=replace(record.regression, tasks=tasks))

    (group,) = groups(load(planted(tmp_path / "s", "*", counted)))
    found = forgetting.section(group)
    assert found is not None
    assert found.lead == says


def test_a_bounded_test_split_says_so(tmp_path: Path) -> None:
    def counted(record: Record) -> Record:
        assert record.data
        return replace(record, data=replace(record.data, test_examples=48, test_available=1319, check=CHECK))

    (group,) = groups(load(planted(tmp_path / "s", "*", counted)))
    found = data.section(group)
    assert found is not None
    assert "48 of 1,319 test examples (bounded by task.test_examples)." in found.items


def test_what_was_expected_stands_beside_what_it_took(tmp_path: Path, made_up: Group) -> None:
    told = Expected({"load": 50.0, "train": 100.0, "heldout": None, "generation": 50.0, "suite": 30.0}, 2**31, 0)
    (group,) = groups(load(planted(tmp_path / "s", "lora*", lambda record: replace(record, expected=told))))
    (part,) = (p for p in speed.section(group).parts if p.title == "Expected before the start")
    assert part.table is not None
    headers, lora = part.table.headers[1:], cells(part.table)["lora"]
    shown = dict(zip(headers, lora, strict=True))
    assert not {"held-out, s", "all, s"} & set(shown)  # not told
    assert shown["generation, s"] == "50 / 52 (-4%)"
    assert shown["suite, s"] == "30 / 30 (+0%)"
    assert "full" not in cells(part.table)
    assert "Expected before the start" not in [p.title for p in speed.section(made_up).parts]
