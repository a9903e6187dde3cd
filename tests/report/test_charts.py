"""The charts' numbers, and what goes into the page with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import EXAMPLES, METHODS, STEPS, build_sweep

from bench.config import with_settings
from bench.record import Record, from_json, to_json
from bench.report import chart_frames
from bench.report.answer import Group, answer_table, groups_of, without_controls
from bench.report.cards import cards_of
from bench.report.charts.look import legend, spec_of
from bench.report.charts.loss import AXES
from bench.report.charts.quality import quality_chart
from bench.report.figures import figures_of
from bench.report.load import load
from bench.report.memory_estimates import estimated, parts_frame
from bench.report.sample_browser import browsable

IMAGES = {name: f"plots/{name}.png" for name in ("quality_against_cost", "loss_curves", "memory", "regression")}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    (found,) = groups_of(load(build_sweep(tmp_path_factory.mktemp("results") / "synthetic")))
    return found


def test_quality_has_a_point_an_arm_and_its_costs(group: Group) -> None:
    points, costs = chart_frames.quality_points(group)
    assert list(points["arm"]) == ["base", "full", "lora", "qlora"]
    assert costs == ["peak training memory, GiB", "training time, min"]  # no price was set
    lora = points.set_index("arm").loc["lora"]
    assert lora["peak training memory, GiB"] == pytest.approx((METHODS["lora"]["peak"] + 4) / 1024)  # two seeds
    assert lora["low"] < lora["score"] < lora["high"]
    assert dict(zip(points["arm"], points["Pareto set"], strict=True))["base"] == "no"


def test_curves_are_means_with_the_range_of_the_seeds(group: Group) -> None:
    curves, targets = chart_frames.loss_curves(group)
    held = curves[(curves["arm"] == "full") & (curves["kind"] == "held-out")]
    assert list(held[AXES[0]]) == [0, 8, 16, STEPS]
    last = held.iloc[-1]
    assert (last["low"], last["loss"], last["high"]) == pytest.approx((2.55, 2.555, 2.56))
    training = curves[(curves["arm"] == "full") & (curves["kind"] == "training")]
    assert len(training) == STEPS
    assert training["seeds"].eq(2).all()
    assert set(targets["arm"]) == {"full", "lora", "qlora"}


def test_long_curves_are_averaged_over_equal_parts() -> None:
    parts = chart_frames.binned(pd.DataFrame({"step": np.arange(1, 1001)}))
    assert parts.nunique() == chart_frames.BINS
    assert parts.value_counts().eq(5).all()


def test_step_times_are_those_of_timed_steps(group: Group) -> None:
    seconds = chart_frames.step_seconds(group)
    box = seconds.dropna(subset=["median"]).set_index("arm")
    assert box.at["lora", "timed steps"] == 2 * (STEPS - 3)
    assert box.at["lora", "median"] == pytest.approx(2240 / METHODS["lora"]["speed"])


def test_the_estimate_stands_beside_the_measurement_where_settings_tell_it() -> None:
    reference = Path(__file__).parents[2] / "results" / "reference"
    record = from_json(Record, next(reference.glob("lora-*/record.json")).read_bytes())
    found = estimated(record)
    assert found is not None
    assert record.train
    assert record.train.breakdown
    assert found["weights"] == pytest.approx(record.train.breakdown.weights_bytes, rel=0.01)
    assert found["optimizer state"] == pytest.approx(record.train.breakdown.optimizer_bytes, rel=0.01)


def test_no_estimate_from_settings_that_say_too_little(group: Group) -> None:
    parts = parts_frame(group)
    assert set(parts["source"]) == {"measured"}
    full = parts[parts["arm"] == "full"]
    assert full["GiB"].sum() == pytest.approx(full["total GiB"].iloc[0])


def test_figures_go_where_there_is_a_place(group: Group) -> None:
    figures = figures_of(group, IMAGES)
    assert [figure.place for figure in figures] == [*(IMAGES[name] for name in IMAGES), "Speed"]
    for figure in figures:
        text = json.dumps(figure.spec)
        assert "NaN" not in text
        assert figure.spec["width"] == "container"
        assert "numbers follow" in figure.spec["description"]


def test_values_in_a_chart_are_short() -> None:
    points = pd.DataFrame({"arm": ["a"], "score": [1 / 3], "low": [0.1], "high": [0.5], "seeds": [1], "cost": [2.0],
                           "Pareto set": ["yes"], "trained": [True]})  # fmt: skip
    (rows,) = spec_of(quality_chart(points, "rougeL", ["cost"]), "words")["datasets"].values()
    assert rows[0]["score"] == 0.33333


def test_a_legend_fits_a_phone() -> None:
    assert legend(["full", "lora"]).to_dict()["columns"] == 5
    assert legend(["lora (learning_rate=0.0002)"]).to_dict()["columns"] == 1


def test_cards_hold_three_numbers(group: Group) -> None:
    cards = {card.arm: card for card in cards_of(group)}
    assert [what for what, *_ in cards["full"].numbers] == ["rougeL", "peak memory", "training"]
    assert [what for what, *_ in cards["base"].numbers] == ["rougeL"]
    assert any(card.mark for card in cards.values())


def test_as_many_examples_as_fit_and_those_that_differ_most(group: Group) -> None:
    samples = browsable(group)
    assert samples is not None
    assert samples.facts["compared"] == ["full", "lora", "qlora"]
    everything = samples.within(10_000_000)
    assert (everything.shown, everything.examples) == (EXAMPLES, EXAMPLES)
    few = samples.within(len(everything.content.encode()) // 4)
    assert 0 < few.shown < EXAMPLES
    assert len(few.content.encode()) <= len(everything.content.encode()) // 4
    kept = {row[0]: row[3] for row in json.loads(few.content)["rows"]}
    left = [row[3] for row in json.loads(everything.content)["rows"] if row[0] not in kept]
    assert min(kept.values()) >= max(left)
    assert samples.within(0).shown == 0


def test_examples_hold_no_markup(group: Group) -> None:
    samples = browsable(group)
    assert samples is not None
    assert "<" not in samples.within(10_000_000).content


def test_controls_are_in_the_tables_and_not_in_the_charts(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic", failed=False)
    for file in folder.glob("full-*/record.json"):  # as if full fine-tuning had been wrecked on purpose
        record = from_json(Record, file.read_bytes())
        assert record.train
        worse = [replace(point, loss=9.0) for point in record.train.heldout]
        config = with_settings(record.config, {"method.control": True})
        record = replace(record, config=config, train=replace(record.train, heldout=worse))
        file.write_text(to_json(record))
    (group,) = groups_of(load(folder))
    shown = without_controls(group)
    assert {card.arm for card in cards_of(shown)} == {"base", "lora", "qlora"}
    assert all("full" not in set(figure.data.get("arm", [])) for figure in figures_of(shown, IMAGES))
    assert "| full |" in answer_table(group)
    (compared,) = group.curves
    assert set(compared.runs) == {"lora", "qlora"}
    assert compared.target is not None
    assert compared.target < 9.0
    assert without_controls(shown) is shown


def test_the_heat_map_tells_its_intervals(group: Group) -> None:
    (figure,) = [f for f in figures_of(group, IMAGES) if f.place == IMAGES["regression"]]
    texts = [layer["encoding"]["text"]["field"] for layer in figure.spec["layer"] if layer["mark"]["type"] == "text"]
    assert texts == ["change", "interval"]
