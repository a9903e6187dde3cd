"""Every quantity of a claim against an answer worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from claim_evidence import ALL_TASKS, INSTRUCTIONS, ROUGE, evidence, run, verdict
from synthetic import MIB, make_steps, make_tuning

from bench.analysis.measured import Measured
from bench.analysis.quantities import PAIRED_BY_EXAMPLE, UNMEASURED
from bench.analysis.rate_sweeps import best_cell
from bench.analysis.run_quantities import RUN_QUANTITIES
from bench.analysis.serving_quantities import SERVING_QUANTITIES
from bench.config import with_settings
from bench.record import HeldoutPoint, MemoryBreakdown, Record, Trial
from bench.stats.claim import Quantity

ADAPTER_BYTES = 4_884_480 * 4
PARAMETERS = 134_515_008
ROWS = np.random.default_rng(3).uniform(0.2, 0.4, 200)


def measured(runs: Any, /, **check: Any) -> Measured:
    """What a check measures, whatever is expected of it."""
    (part,) = verdict(runs, {"expect": [0, None]} | check).parts
    assert part.measured is not None, part.reason
    return part.measured


def test_every_quantity_is_measured_or_says_why_not() -> None:
    one_by_one = {"tokens_per_second", "step_seconds", "gradient_spike_share", "best_learning_rate", "trainable_dtype"}
    groups = [set(RUN_QUANTITIES), set(SERVING_QUANTITIES), set(UNMEASURED), set(PAIRED_BY_EXAMPLE), one_by_one]
    assert sum(map(len, groups)) == len(get_args(Quantity))
    assert set.union(*groups) == set(get_args(Quantity))


@pytest.mark.parametrize(
    ("method", "quantity", "value"),
    [
        ("full", "static_bytes_per_parameter", 2052 * MIB / PARAMETERS),
        ("lora", "base_weights_gb", (275 * MIB - ADAPTER_BYTES) / 1e9),
        ("full", "base_weights_gb", 513 * MIB / 1e9),
        ("qlora", "trainable_share", 4_884_480 / (PARAMETERS + 4_884_480)),
        ("full", "trainable_parameters", PARAMETERS),
        ("lora", "checkpoint_mb", 19 * MIB / 1e6),
    ],
)
def test_counts_are_exact(method: str, quantity: str, value: float) -> None:
    found = measured(evidence([run(method), run(method, 1)]), quantity=quantity, of=method)
    assert found.value == pytest.approx(value)
    assert (found.exact, found.interval, found.basis) == (True, None, "exact")


def test_bits_of_a_quantized_parameter() -> None:
    """100 million of the 134.5 million are quantized; the others are 2 bytes each."""
    quantized, others = 100_000_000, PARAMETERS - 100_000_000

    def of_bits(bits: float, **settings: Any) -> Record:
        weights = round(quantized * bits / 8 + others * 2 + ADAPTER_BYTES)
        parts = {"breakdown": MemoryBreakdown(weights, 0, 0), "parameters_quantized": quantized}
        return run("qlora", train=parts, **settings)

    runs = evidence([of_bits(4.127), of_bits(4.5, double_quantization=False)])
    arms = [{"method": "qlora", "double_quantization": value} for value in (False, True)]
    quantity = "bits_per_quantized_parameter"
    assert measured(runs, quantity=quantity, of=arms[1]).value == pytest.approx(4.127)
    saved = measured(runs, quantity=quantity, of=arms[0], against=arms[1], form="difference")
    assert saved.value == pytest.approx(0.373)
    older = verdict(evidence([run("qlora")]), {"quantity": quantity, "of": "qlora", "above": 0})
    assert older.reason == "the record of qlora does not tell how many parameters are quantized"


def test_peak_memory_leaves_out_what_was_there_before_the_model() -> None:
    """Synthetic peaks are 600 MiB above the start, 8 MiB apart between the seeds."""
    one = measured(evidence([run("full"), run("lora")]), quantity="peak_memory_gb", of="lora")
    assert one.value == pytest.approx((2552 - 600) * MIB / 1e9)
    assert (one.interval, one.basis) == (None, "one seed, no interval")
    seeds = [run(method, seed) for method in ("full", "lora") for seed in (0, 1)]
    two = measured(evidence(seeds), quantity="peak_memory_gb", of="lora", against="full", form="difference")
    assert two.value == pytest.approx((2552 - 4397) * MIB / 1e9)
    assert two.interval == pytest.approx((two.value, two.value))  # both methods take 8 MiB more with seed 1
    saved = measured(evidence(seeds), quantity="peak_memory_gb", of="lora", against="full", form="reduction")
    ratios = [(1952 + 8 * seed) / (3797 + 8 * seed) for seed in (0, 1)]
    assert saved.value == pytest.approx(1 - np.mean(ratios))
    half = 12.706 * np.std(ratios, ddof=1) / np.sqrt(2)  # Student's t of one degree of freedom
    assert saved.interval == pytest.approx((saved.value - half, saved.value + half), rel=1e-4)


def test_one_peak_near_the_limit_decides_nothing() -> None:
    def word(limit: float) -> tuple[str, str]:
        check = {"quantity": "peak_memory_gb", "of": "lora", "against": "full", "form": "ratio", "below": limit}
        found = verdict(evidence([run("full"), run("lora")]), check)
        return found.word, found.reason

    ratio = 1952 / 3797
    assert word(ratio * 1.11) == ("holds", "")
    assert word(ratio * 0.89) == ("does not hold", "")
    assert word(ratio * 1.09) == ("inconclusive", "a single run's value within 10% of the limit")


def test_memory_and_speed_are_not_compared_across_micro_batches() -> None:
    lora = run("lora")
    other = replace(lora, config=with_settings(lora.config, {"train.micro_batch": 4}))
    for quantity in ("peak_memory_gb", "tokens_per_second"):
        found = verdict(evidence([run("full"), other]), {"quantity": quantity, "order": "full > lora"})
        assert (found.word, found.reason) == ("not tested", "the micro-batches differ (4, 8)")


def test_cost_is_training_time_at_a_price() -> None:
    record = run("lora")
    check = {"quantity": "cost_usd", "of": "lora"}
    unpriced = verdict(evidence([record]), check | {"above": 0})
    assert unpriced.reason == "the machine has no price; set hardware.price_usd_per_hour"
    priced = replace(record, config=with_settings(record.config, {"hardware.price_usd_per_hour": 3.6}))
    assert record.train is not None
    assert measured(evidence([priced]), **check).value == pytest.approx(record.train.train_seconds / 1000)


def test_speeds_are_sums_over_the_timed_steps() -> None:
    """Synthetic steps take 2240 / speed seconds each, the first three untimed."""
    runs = evidence([run("full"), run("lora")])
    value = measured(runs, quantity="tokens_per_second", of="full")
    assert (value.value, value.basis) == (pytest.approx(505), "29 steps, 1 seed")
    assert measured(runs, quantity="step_seconds", of="full").value == pytest.approx(2240 / 505)
    pair = {"of": "full", "against": "lora"}
    speed = {
        form: measured(runs, quantity="tokens_per_second", form=form, **pair).value
        for form in ("ratio", "reduction", "relative_difference", "difference")
    }
    assert speed["ratio"] == pytest.approx(505 / 600)
    assert speed["reduction"] == pytest.approx(1 - 505 / 600)
    assert speed["relative_difference"] == pytest.approx(505 / 600 - 1)
    assert speed["difference"] == pytest.approx(505 - 600)
    seconds = measured(runs, quantity="step_seconds", form="difference", **pair)
    assert seconds.value == pytest.approx(2240 / 505 - 2240 / 600)


def test_the_interval_of_a_speed_ratio_covers_the_steps() -> None:
    """Steps twice as slow on average, between 1.5 and 2.5 times: the interval holds 2 and is about 2 sd / sqrt(n)."""
    full, lora = run("full"), run("lora")
    factors = 2 + 0.5 * np.random.default_rng(4).uniform(-1, 1, 32)
    slowed = [replace(s, seconds=s.seconds * f) for s, f in zip(make_steps("lora", 0), factors, strict=True)]
    steps = {full.run_id: slowed, lora.run_id: make_steps("lora", 0)}
    found = measured(
        evidence([full, lora], steps=steps), quantity="step_seconds", of="full", against="lora", form="ratio"
    )
    assert found.interval is not None
    assert found.value == pytest.approx(factors[3:].mean())
    assert found.interval[0] < 2 < found.interval[1]
    expected = 2 * 2.048 * factors[3:].std(ddof=1) / np.sqrt(29)
    assert found.interval[1] - found.interval[0] == pytest.approx(expected, rel=0.1)


def test_a_spike_is_three_times_the_median_of_the_ten_steps_before() -> None:
    low, high = run("qlora", rank=16), run("qlora", rank=128)
    calm = make_steps("qlora", 0)
    wild = [replace(s, gradient_norm=3.4 if s.step in (15, 20, 25) else 1.1) for s in calm]
    wild[30] = replace(wild[30], gradient_norm=None)  # not finite
    wild[5] = replace(wild[5], gradient_norm=99.0)  # before there are ten steps to look back at
    runs = evidence([low, high], steps={low.run_id: calm, high.run_id: wild})
    check = {
        "quantity": "gradient_spike_share",
        "of": {"method": "qlora", "rank": [128, None]},
        "against": {"method": "qlora", "rank": [1, 16]},
        "form": "difference",
    }
    found = measured(runs, **check)
    assert found.value == pytest.approx(4 / 22)
    assert found.basis == "22 steps, 1 seed"


def test_scores_are_paired_by_example_and_relative_to_the_second_arm() -> None:
    full, lora = run("full"), run("lora")
    runs = evidence([full, lora], values={ROUGE: {full.run_id: ROWS, lora.run_id: 0.9 * ROWS}})
    pair = {"quantity": "score", "of": "lora", "against": "full"}
    assert measured(runs, form="difference", **pair).value == pytest.approx(-0.1 * ROWS.mean())
    assert measured(runs, form="ratio", **pair).value == pytest.approx(0.9)
    relative = measured(runs, form="relative_difference", **pair)
    assert (relative.value, relative.basis) == (pytest.approx(-0.1), "200 examples, 1 seed")
    assert measured(runs, quantity="score", of="lora").value == pytest.approx(0.9 * ROWS.mean())
    named = verdict(runs, pair | {"form": "difference", "metric": "bleu", "above": 0})
    assert named.reason == "the sweep measured no score bleu"


@pytest.mark.parametrize(("quantity", "measure"), [("regression_drop", ALL_TASKS), ("instructions_drop", INSTRUCTIONS)])
def test_a_drop_is_what_was_lost(quantity: str, measure: Any) -> None:
    base, full, lora = run("base"), run("full"), run("lora")
    items = (np.arange(200) < 160).astype(float)
    worse = (np.arange(200) < 120).astype(float)
    runs = evidence([base, full, lora], values={measure: {base.run_id: items, full.run_id: worse, lora.run_id: items}})
    lost = measured(runs, quantity=quantity, of="full", against="base", form="difference")
    assert (lost.value, lost.basis) == (pytest.approx(0.2), "200 items, 1 seed")
    assert verdict(runs, {"quantity": quantity, "order": "full > lora"}).word == "holds"


def test_the_variants_of_lora_are_not_meant_by_its_name() -> None:
    share = {"quantity": "trainable_share", "expect": [0, 1]}
    lora = run("lora")
    config = with_settings(lora.config, {"method.name": "lora_dora", "method.adapter.use_dora": True})
    dora = replace(lora, run_id="dora", method="lora_dora", config=config)
    assert verdict(evidence([dora]), share | {"of": "lora"}).word == "not tested"
    (part,) = verdict(evidence([lora, dora]), share | {"of": "lora"}).parts
    assert part.arms == ("lora",)


def test_arms_are_paired_by_the_settings_that_the_claim_leaves_alone() -> None:
    ranks = [run(method, rank=rank) for method in ("lora", "qlora") for rank in (8, 16)]
    check = {"quantity": "trainable_parameters", "of": "qlora", "against": "lora", "form": "ratio", "expect": [1, 1]}
    found = verdict(evidence(ranks), check)
    assert [part.arms for part in found.parts] == [
        ("qlora (rank=16)", "lora (rank=16)"),
        ("qlora (rank=8)", "lora (rank=8)"),
    ]
    unlike = verdict(evidence([run("lora", rank=8), run("qlora", rank=16)]), check)
    assert unlike.reason == "no run of qlora and of lora agree in all other settings"


def test_equally_many_trainable_parameters() -> None:
    def lora(rank: int, modules: Any, trainable: int) -> Record:
        return run("lora", rank=rank, target_modules=modules, train={"parameters_trainable": trainable})

    qv = ["v_proj", "q_proj"]
    arms = {
        name: {"method": "lora", "target_modules": modules, "rank": [1, None]}
        for name, modules in (("all", "all-linear"), ("qv", ["q_proj", "v_proj"]))
    }
    check = {"quantity": "trainable_parameters", "of": arms["all"], "against": arms["qv"], "form": "ratio",
             "expect": [0.95, 1.05], "same_trainable": True}  # fmt: skip
    runs = [lora(8, "all-linear", 1000), lora(8, qv, 300), lora(26, qv, 980)]
    (part,) = verdict(evidence(runs), check).parts
    assert part.measured is not None
    assert part.measured.value == pytest.approx(1000 / 980)
    none = verdict(evidence(runs[:2]), check)
    assert none.reason.endswith("agree in all other settings and train equally many parameters")


class TestLearningRates:
    CHECK = {"quantity": "best_learning_rate", "of": "lora", "against": "full", "form": "ratio"}  # noqa: RUF012

    def test_the_optimum_is_nearer_to_the_best_rate_than_to_its_neighbours(self) -> None:
        assert best_cell({1e-4: 2.0, 4e-4: 1.0, 16e-4: 3.0}) == pytest.approx((4e-4, 2e-4, 8e-4))
        assert best_cell({1e-4: 1.0, 4e-4: 2.0}) == (1e-4, 0.0, pytest.approx(2e-4))
        assert best_cell({1e-4: 2.0, 4e-4: 1.0}) == (4e-4, pytest.approx(2e-4), np.inf)

    def test_from_searches(self) -> None:
        runs = {method: run(method) for method in ("full", "lora")}
        losses = {"full": {1e-5: 2.0, 4e-5: 1.0, 16e-5: 3.0}, "lora": {1e-4: 2.0, 4e-4: 1.0, 16e-4: None}}
        tunings = [
            make_tuning(runs[method], [Trial(rate, loss, 8, None, 60.0, "x") for rate, loss in by_rate.items()])
            for method, by_rate in losses.items()
        ]
        found = measured(evidence(list(runs.values()), tunings=tunings), **self.CHECK)
        assert found.value == pytest.approx(10)
        assert found.interval == pytest.approx((2.5, 40))
        assert found.basis == "3 and 3 rates tried"

    def test_from_arms_that_differ_in_the_rate_alone(self) -> None:
        def at(method: str, rate: float, loss: float) -> Record:
            return run(method, learning_rate=rate, train={"heldout": [HeldoutPoint(32, 1, 1.0, loss)]})

        runs = [at("full", 1e-5, 1.0), at("full", 2e-5, 2.0), at("lora", 1e-4, 2.0), at("lora", 2e-4, 1.0)]
        found = verdict(evidence(runs), self.CHECK | {"expect": [5, 25]})
        assert found.parts[0].measured is not None
        assert found.parts[0].measured.value == pytest.approx(20)
        assert found.word == "inconclusive"  # both are at the edge of what was tried
        (part,) = verdict(evidence(runs), {"quantity": "trainable_share", "of": "lora", "expect": [0, 1]}).parts
        assert part.arms == ("lora (learning_rate=0.0002)",)

    def test_without_a_search(self) -> None:
        found = verdict(evidence([run("full"), run("lora")]), self.CHECK | {"expect": [5, 20]})
        assert (found.word, found.reason) == ("not tested", "no search of the learning rate of lora")
