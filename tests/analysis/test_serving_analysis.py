"""Medians, ratios, costs and the form to ship, against answers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from claim_evidence import evidence, verdict
from served import LORA, served
from synthetic import ENVIRONMENT, EXAMPLES, MIB, make_record

from bench.analysis import serving, shipping, stats
from bench.analysis.findings import Margins
from bench.analysis.load import disturbances
from bench.analysis.measures import Measure

ROUGE = Measure("score", "rougeL")


def rng() -> stats.Resampler:
    return stats.Resampler(np.random.default_rng(0), draws=1000)


@pytest.mark.parametrize(
    ("count", "ends", "covers"),
    [(1, (1, 1), 0.0), (5, (1, 5), 0.9375), (6, (1, 6), 0.96875), (10, (2, 9), 0.9785), (20, (6, 15), 0.9586)],
)
def test_the_interval_of_a_median_is_that_of_the_binomial(count: int, ends: tuple[int, int], covers: float) -> None:
    found = serving.median(range(1, count + 1))
    assert (found.low, found.high, found.count) == (*ends, count)
    assert found.value == (count + 1) / 2
    assert found.covers == pytest.approx(covers, abs=1e-4)


def test_a_median_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        serving.median([])


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).lognormal(size=(4000, 10))
    inside = [found.low <= 1.0 <= found.high for found in map(serving.median, draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.9785, abs=0.01)


def test_latencies_by_form_length_and_batch() -> None:
    record, _ = served(make_record("lora", 0))
    found = {(one.form, one.batch_size): one for one in serving.latencies([record])}
    assert list(found) == [(form, size) for form in LORA for size in (1, 8)]
    one = found["unmerged", 1]
    assert one.total_seconds.value == pytest.approx(0.60 * 1.125 * 1.05)  # half-way between the two rounds
    assert one.rounds_total_seconds == pytest.approx([0.675, 0.7425])
    assert one.decode_tokens_per_second.high == pytest.approx(15 / (0.675 - 0.1))
    assert (one.ratio.value, one.ratio.low, one.ratio.high) == pytest.approx((1.5, 1.5, 1.5))  # rounds cancel
    assert found["base", 1].ratio is None


def test_cost_from_the_median() -> None:
    record, _ = served(make_record("lora", 0))
    one = next(one for one in serving.latencies([record]) if (one.form, one.batch_size) == ("merged", 8))
    seconds = 0.40 * 2 * 1.05
    found = serving.cost(one, 16, 3.6)
    assert found.requests_per_second == pytest.approx(8 / seconds)
    assert found.tokens_per_second == pytest.approx(128 / seconds)
    assert found.usd_per_million_tokens == pytest.approx(0.001 * seconds / 128 * 1e6)
    assert serving.cost(one, 16, None).usd_per_million_tokens is None
    assert serving.price_usd_per_hour([record]) is None
    priced = replace(record, serve=replace(record.serve, price_usd_per_hour=2.5))
    assert serving.price_usd_per_hour([priced]) == 2.5


def test_memory_and_speed_of_many_adapters() -> None:
    record, _ = served(make_record("lora", 0))
    many = record.serve.adapters
    assert serving.held_bytes_per_adapter(many) == pytest.approx(10 * MIB)
    assert serving.held_bytes_per_adapter(replace(many, held_bytes={"1": None, "2": 5})) is None
    speeds = serving.adapter_tokens_per_second(many, 16)
    assert speeds["mixed"][4].value == pytest.approx(4 * 16 / 1.4)
    assert speeds["copies"][4].value == pytest.approx(1 * 16 / 0.3)  # four such shares follow one another


class TestShipping:
    def of(self, method: str, margins: Margins | None = None):
        pairs = [served(make_record(method, seed)) for seed in (0, 1)]
        records = [record for record, _ in pairs]
        answers = {record.run_id: rows for record, rows in pairs}
        changed = shipping.changes(records, answers, ROUGE, margins or Margins(), rng())
        return shipping.advice(records, changed), changed

    def test_a_form_that_is_as_good_and_faster_is_advised(self) -> None:
        advice, changed = self.of("lora")
        assert (advice.form, advice.evaluated, advice.refused) == ("merged", "unmerged", ["merged_nf4"])
        assert advice.latency.value == pytest.approx(0.4 / 0.6)
        by_form = {change.form: change for change in changed}
        assert by_form["merged_nf4"].difference == pytest.approx(-0.05)
        assert (by_form["merged"].difference, by_form["merged"].examples) == (0.0, EXAMPLES)

    def test_of_equally_fast_forms_the_nearer_one(self) -> None:
        advice, _ = self.of("qlora")
        assert advice.form == "merged"  # its logits are nearer than those of merged_original, its layers the same
        assert advice.smallest == "unmerged"

    def test_a_worse_form_is_shipped_by_nobody(self) -> None:
        advice, _ = self.of("lora", Margins(score_relative=0.5))
        assert advice.refused == []
        assert advice.form == "merged"  # still faster than the one in 4 bits
        assert advice.smallest == "merged_nf4"

    def test_an_untrained_model_has_nothing_to_ship(self) -> None:
        record, _ = served(make_record("base", 0))
        assert shipping.changes([record], {}, ROUGE, Margins(), rng()) == []
        assert shipping.advice([record], []) is None


class TestClaims:
    def check(self, quantity: str, record, **expected):
        return verdict(evidence([record]), {"quantity": quantity, "of": record.method, **expected})

    def lora(self):
        return served(make_record("lora", 0))[0]

    @pytest.mark.parametrize(
        ("quantity", "value", "interval"),
        [
            ("unmerged_latency_ratio", 1.5, (1.5, 1.5)),
            ("merged_latency_ratio", 1.0, (1.0, 1.0)),
            ("merge_logit_difference", 0.2, None),
            ("merged_size_ratio", 1.0, None),
            ("adapter_swap_seconds", 0.11, (0.1, 0.12)),
        ],
    )
    def test_quantities(self, quantity: str, value: float, interval: tuple[float, float] | None) -> None:
        (part,) = self.check(quantity, self.lora(), expect=[0, None]).parts
        assert part.measured.value == pytest.approx(value)
        assert part.measured.interval == (interval and pytest.approx(interval))

    def test_verdicts(self) -> None:
        assert self.check("unmerged_latency_ratio", self.lora(), expect=[None, 1.05]).word == "does not hold"
        assert self.check("merged_latency_ratio", self.lora(), expect=[0.98, 1.02]).word == "holds"
        assert self.check("merge_logit_difference", self.lora(), expect=[0, 1e-3]).word == "does not hold"
        qlora = served(make_record("qlora", 0))[0]
        assert self.check("merged_size_ratio", qlora, above=1).word == "holds"
        few = self.check("adapter_swap_seconds", self.lora(), expect=[None, 1])
        assert few.reason.startswith("fewer than 10 to rest on: 3 repetitions")

    def test_why_not(self) -> None:
        plain = self.check("merged_latency_ratio", make_record("lora", 0), expect=[0.98, 1.02])
        assert (plain.word, plain.reason) == ("not tested", "lora was not served; add serve=full to the command")
        record = self.lora()
        busy = replace(ENVIRONMENT, other_cpu_cores=0.9)
        record = replace(record, serve=replace(record.serve, later_environments=[busy]))
        assert disturbances(record) == {"serve": "other processes used 0.90 of its 2 processors"}
        assert "busy machine" in self.check("merged_latency_ratio", record, expect=[0.98, 1.02]).reason
        assert self.check("merge_logit_difference", record, expect=[0, 1]).word == "holds"
