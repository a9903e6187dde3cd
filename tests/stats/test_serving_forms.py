"""Medians, ratios, costs and the form to ship, against answers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import LORA, build_served_sweep, served
from synthetic import MIB, make_record

from bench.served import ServedForm
from bench.stats import quantities, serving
from bench.stats.frames import Group, Sweep, groups, load


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    folder: Path = build_served_sweep(tmp_path_factory.mktemp("served"))
    (found,) = groups(load(folder))
    return found


@pytest.mark.parametrize(("count", "ends"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (10, (2, 9)), (20, (6, 15))])
def test_the_interval_of_a_median_is_that_of_the_binomial(count: int, ends: tuple[int, int]) -> None:
    assert serving.median(range(1, count + 1)) == ((count + 1) / 2, *ends)


def test_a_median_of_nothing_is_unknown() -> None:
    assert np.isnan(serving.median([])).all()


def test_draws_of_a_median_lie_where_the_interval_lies() -> None:
    draws = quantities.median_draws(list(range(1, 11)), np.random.default_rng(0), 20_000)
    assert np.mean((draws > 2) & (draws < 9)) == pytest.approx(0.9785, abs=0.005)


def test_latency_by_form_length_and_batch(group: Group) -> None:
    frame = serving.latency_frame(group)
    lora = frame[frame["arm"] == "lora"].set_index(["form", "batch_size"])
    assert list(lora.index) == [(form, size) for form in LORA for size in (1, 8)]
    one = lora.loc[("unmerged", 1)]
    assert one["total_seconds"] == pytest.approx(0.60 * 1.125 * 1.05)
    assert one["decode_tokens_per_second_high"] == pytest.approx(15 / (0.675 - 0.1))
    assert (one["ratio"], one["ratio_low"], one["ratio_high"]) == pytest.approx((1.5, 1.5, 1.5))  # pairing cancels
    assert np.isnan(lora.loc[("base", 1), "ratio"])
    assert lora.loc[("merged", 8), "requests_per_second"] == pytest.approx(8 / (0.40 * 2 * 1.05))
    assert np.isnan(lora.loc[("merged", 8), "usd_per_million_tokens"])


def test_a_price_makes_tokens_cost_money() -> None:
    record, _ = served(make_record("lora", 0))
    assert record.serve is not None
    priced = replace(record, serve=replace(record.serve, price_usd_per_hour=3.6))
    (group,) = groups(Sweep([], [priced]))
    row = serving.latency_frame(group).set_index(["form", "batch_size"]).loc[("merged", 8)]
    assert row["usd_per_million_tokens"] == pytest.approx(0.001 * 0.40 * 2 * 1.05 / 128 * 1e6)


def test_the_fastest_form_that_is_as_good_is_shipped(group: Group) -> None:
    frame = serving.forms_frame(group)
    lora = frame[frame["arm"] == "lora"].set_index("form")
    assert list(lora.index[lora["ship"]]) == ["merged"]
    assert list(lora.index[lora["evaluated"]]) == ["unmerged"]
    assert lora.loc["merged", "latency_ratio"] == pytest.approx(0.4 / 0.6)
    assert (lora.loc["merged", "difference"], lora.loc["merged", "logit_difference"]) == (0.0, pytest.approx(0.2))
    assert lora.loc["merged_nf4", "difference"] == pytest.approx(-0.05)
    assert lora.loc["merged_nf4", "as_good"] is False
    assert lora.loc["merged", "peak_memory_bytes"] == (257 + 400) * MIB


def test_an_export_of_one_seed_is_paired_with_that_seed(group: Group) -> None:
    """The change of one step, where it differs from that since training; a form of one run alone."""
    records = [record for record in group.by_arm["lora"] if record.serve]
    answers = {run: list(rows) for run, rows in group.sweep.answer_rows.items()}
    first = records[0]
    made = ServedForm("merged_gguf_q8_0", "as exported", "merged_gguf_q8_0", "base", 136 * MIB)
    exported = replace(first, serve=replace(first.serve, forms=[*first.serve.forms, made]))
    answers[first.run_id] += [replace(a, form=made.form, scores={"rougeL": a.scores["rougeL"] - 0.01})
                              for a in answers[first.run_id] if a.form == "merged"]  # fmt: skip
    sweep = replace(group.sweep, records=[exported, *records[1:]], answer_rows=answers)
    (changed,) = groups(sweep)
    row = serving.forms_frame(changed).set_index("form").loc[made.form]
    assert row["made_of"] == "merged"
    assert (row["change"], row["difference"]) == (pytest.approx(-0.01), pytest.approx(-0.01))
    assert row["disk_bytes"] == 136 * MIB
    assert len(records) > 1


def test_of_equally_fast_forms_the_nearer_one_is_shipped(group: Group) -> None:
    frame = serving.forms_frame(group)
    qlora = frame[frame["arm"] == "qlora"].set_index("form")
    assert list(qlora.index[qlora["ship"]]) == ["merged"]  # its logits are nearer than those of merged_original


def test_an_untrained_model_has_nothing_to_ship(group: Group) -> None:
    frame = serving.forms_frame(group)
    base = frame[frame["arm"] == "base"]
    assert len(base) == 1
    assert not base["ship"].any()


def test_memory_and_speed_of_many_adapters(group: Group) -> None:
    frame = serving.adapters_frame(group)
    lora = frame[frame["arm"] == "lora"].set_index(["way", "adapters"])
    assert lora["held_bytes_per_adapter"].to_numpy() == pytest.approx(10 * MIB)
    assert lora.loc[("mixed", 4), "tokens_per_second"].iloc[0] == pytest.approx(4 * 16 / 1.4)
    assert lora.loc[("copies", 4), "tokens_per_second"].iloc[0] == pytest.approx(16 / 0.3)
    assert lora["load_seconds"].iloc[0] == pytest.approx(0.11)


@pytest.mark.parametrize("left", ["generations", "fidelity"])
def test_what_was_not_asked_for_is_unknown(left: str) -> None:
    """serve.batch_sizes=[] and serve.fidelity_examples=0 measure the rest."""
    record, _ = served(make_record("lora", 0))
    assert record.serve is not None
    (group,) = groups(Sweep([], [replace(record, serve=replace(record.serve, **{left: []}))]))
    forms = serving.forms_frame(group).set_index("form")
    assert list(forms.index) == list(LORA)
    assert not forms["ship"].any()
    assert serving.latency_frame(group).empty == (left == "generations")


def test_a_sweep_that_was_not_served_has_no_forms() -> None:
    (group,) = groups(Sweep([], [make_record("lora", 0)]))
    assert serving.forms_frame(group).empty
    assert serving.latency_frame(group).empty
    assert serving.adapters_frame(group).empty
