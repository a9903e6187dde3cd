"""What keeps two runs from being compared, under which name, and what an exception changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_items, make_record, make_samples

from bench.analysis import frame
from bench.analysis.compare import Findings, compare
from bench.analysis.fairness import reasons_against
from bench.analysis.load import busy, disturbances, speed_doubts
from bench.analysis.pairing import fair_pairs, fair_partner, match
from bench.config import with_settings
from bench.fairness import REQUIREMENTS
from bench.record import Record
from bench.stats.frames import load

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def trained_in(record: Record, **environment: Any) -> Record:
    assert record.train
    return replace(record, train=replace(record.train, environment=replace(record.train.environment, **environment)))


def evaluated_in(record: Record, **environment: Any) -> Record:
    assert record.evaluate
    return replace(
        record, evaluate=replace(record.evaluate, environment=replace(record.evaluate.environment, **environment))
    )


def with_setting(record: Record, part: str, **settings: Any) -> Record:
    return replace(
        record, config=with_settings(record.config, {f"{part}.{name}": value for name, value in settings.items()})
    )


def with_training(record: Record, **fields: Any) -> Record:
    assert record.train
    return replace(record, train=replace(record.train, **fields))


def with_packages(record: Record, **packages: str) -> Record:
    return replace(record, provenance=record.provenance | {"packages": record.provenance["packages"] | packages})


DIFFERENCES: list[tuple[str, Callable[[Record], Record], str]] = [
    ("device", lambda r: trained_in(r, device="cuda: NVIDIA"), "trained with different device"),
    ("device", lambda r: evaluated_in(r, device="cuda: NVIDIA"), "evaluated with different device"),
    ("device", lambda r: trained_in(r, device_count=2), "number of devices (1 and 2)"),
    ("threads", lambda r: trained_in(r, threads=1), "different threads (2 and 1)"),
    ("software", lambda r: trained_in(r, torch="2.12.0"), "different torch (2.13.0 and 2.12.0)"),
    ("software", lambda r: with_packages(r, peft="0.20.0"), "different packages (peft 0.21.2 and 0.20.0)"),
    ("numerics", lambda r: trained_in(r, compute_dtype="float32"), "different compute_dtype"),
    ("numerics", lambda r: trained_in(r, attention="eager"), "different attention"),
    ("numerics", lambda r: trained_in(r, compiled="off: no compiler"), "different numerics (compiled: regional and"),
    ("budget", lambda r: with_setting(r, "train", epochs=3), "train.epochs 1 and 3"),
    ("budget", lambda r: with_training(r, steps=31), "different numbers of steps (32 and 31)"),
    ("stream", lambda r: with_training(r, data_stream_sha256="e" * 64), "data_stream_sha256 0d0d0d0d and eeeeeeee"),
    ("stream", lambda r: replace(r, data=replace(r.data, fingerprint="e" * 64)), "fingerprint ffffffff and eeeeeeee"),
    ("model", lambda r: with_setting(r, "model", revision="abc"), "model.revision None and abc"),
    ("task", lambda r: with_setting(r, "task", prompt="{x}"), "task.prompt {prompt} and {x}"),
    ("suite", lambda r: with_setting(r, "suite", source="local"), "suite.source quick and local"),
    ("hardware", lambda r: with_setting(r, "hardware", memory_limit_gib=8), "hardware.memory_limit_gib None and 8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "text"), DIFFERENCES, ids=lambda v: v if isinstance(v, str) else "")
def test_each_difference_is_a_reason_and_can_be_allowed(
    name: str, change: Callable[[Record], Record], text: str
) -> None:
    full, lora = make_record("full", 0), make_record("lora", 0)
    assert reasons_against(full, lora) == []
    (reason,) = reasons_against(full, change(lora))
    assert (reason.name, reason.may_be_allowed) == (name, True)
    assert text in reason.text
    assert match([full], [change(lora)], {}).pairs == []
    matching = match([full], [change(lora)], {}, frozenset({name}))
    assert matching.pairs == [(full.run_id, lora.run_id)]
    assert (matching.refused, matching.excepted) == ([], [("0", reason)])
    others = frozenset(REQUIREMENTS) - {name}
    assert match([full], [change(lora)], {}, others).pairs == []


def test_every_requirement_is_checked() -> None:
    assert {name for name, *_ in DIFFERENCES} == set(REQUIREMENTS)


def test_a_difference_in_both_stages_is_said_once() -> None:
    lora = evaluated_in(trained_in(make_record("lora", 0), threads=1), threads=1)
    (reason,) = reasons_against(make_record("full", 0), lora)
    assert reason.text == "they were trained and evaluated with different threads (2 and 1)"


@pytest.mark.parametrize(
    ("compiled", "dtype", "refused"),
    [("off", "bfloat16", True), ("regional", "bfloat16", False), ("off", "float32", False)],
)
def test_where_the_adapter_is_added_matters_where_it_is_rounded(compiled: str, dtype: str, refused: bool) -> None:
    def run(method: str, in_fp32: bool) -> Record:
        record = trained_in(make_record(method, 0), compiled=compiled, compute_dtype=dtype)
        return with_setting(record, "method.adapter", add_in_fp32=in_fp32)

    assert reasons_against(run("lora", True), run("qlora", True)) == []
    reasons = reasons_against(run("lora", True), run("qlora", False))
    assert [reason.name for reason in reasons] == (["numerics"] if refused else [])


def test_the_reason_for_no_compilation_changes_nothing() -> None:
    runs = [trained_in(make_record(m, 0), compiled=c) for m, c in (("full", "off"), ("lora", "off: no compiler"))]
    assert reasons_against(*runs) == []


def test_what_an_older_record_does_not_know_is_no_reason() -> None:
    full, lora = trained_in(make_record("full", 0), cpus=2, cpu_governor="powersave"), make_record("lora", 0)
    assert reasons_against(full, replace(lora, provenance={})) == []


def test_an_untrained_run_must_agree_in_evaluation_only() -> None:
    base, lora = make_record("base", 0), make_record("lora", 0)
    other = with_setting(with_setting(lora, "train", epochs=3), "task", train_examples=5)
    assert reasons_against(base, trained_in(other, compiled="off")) == []
    (reason,) = reasons_against(base, with_setting(lora, "task", test_examples=5))
    assert reason.name == "task"
    (reason,) = reasons_against(base, evaluated_in(lora, threads=1))
    assert reason.name == "threads"


def test_no_training_result_and_an_unknown_difference_cannot_be_allowed() -> None:
    full, lora = make_record("full", 0), make_record("lora", 0)
    for other in (replace(lora, train=None), replace(lora, comparison_key="other")):
        (reason,) = reasons_against(full, other)
        assert not reason.may_be_allowed
        assert match([full], [other], {}, frozenset(REQUIREMENTS)).pairs == []


def test_the_reference_sweep_is_fair() -> None:
    """Records of before the newer fields load, and say nothing against one another."""
    records = load(REFERENCE).records
    assert len(records) >= 4
    alike = [
        (a, b) for a in records for b in records if a is not b and (a.seed == b.seed or "base" in (a.method, b.method))
    ]
    assert [reasons_against(a, b) for a, b in alike if reasons_against(a, b)] == []


def test_a_fair_baseline_goes_before_an_allowed_one() -> None:
    arms = {
        "full (threads=1)": [trained_in(make_record("full", seed), threads=1) for seed in (0, 1)],
        "full (threads=2)": [make_record("full", 0), trained_in(make_record("full", 1), threads=1)],
        "lora": [make_record("lora", 0), make_record("lora", 1)],
    }
    names = [name for name in arms if name != "lora"]
    allowed = frozenset({"threads"})
    baseline, pairs, refused, excepted = fair_partner("lora", names, arms, {})
    assert (baseline, len(pairs), [r.seeds for r in refused], excepted) == ("full (threads=2)", 1, ["1"], [])
    baseline, pairs, refused, excepted = fair_partner("lora", names, arms, {}, allowed)
    assert (baseline, len(pairs), refused, [e.seeds for e in excepted]) == ("full (threads=2)", 2, [], ["1"])
    baseline, pairs, _, excepted = fair_partner("lora", names[:1], arms, {}, allowed)
    assert (baseline, len(pairs), [e.seeds for e in excepted]) == ("full (threads=1)", 2, ["0, 1"])


def findings_of(records: list[Record], allowed: frozenset[str]) -> Findings:
    samples = {r.run_id: make_samples(r.method, r.seed) for r in records}
    items = {r.run_id: make_items(r.method, r.seed) for r in records}
    frames = frame.samples_frame(samples, records), frame.regression_frame(items, records)
    return compare(records, *frames, rng=np.random.default_rng(0), allowed=allowed)


def test_an_exception_is_kept_with_what_it_made_possible() -> None:
    records = [make_record("full", 0), trained_in(make_record("lora", 0), threads=1)]
    strict = findings_of(records, frozenset())
    assert (strict.comparisons, [r.reason.name for r in strict.refusals]) == ([], ["threads"])
    lenient = findings_of(records, frozenset({"threads", "device"}))
    assert lenient.refusals == []
    (exception,) = lenient.exceptions
    assert (exception.arm, exception.baseline, exception.seeds) == ("lora", "full", "0")
    assert {comparison.differing for comparison in lenient.comparisons} == {("threads",)}
    assert fair_pairs(records[1:], records[:1], {})[0] == []  # without being asked, never


@pytest.mark.parametrize(
    ("measured", "clause"),
    [
        ({"other_cpu_cores": 0.84}, "other processes used 0.84 of its 2 processors"),
        ({"other_cpu_cores": 0.05, "stolen_cpu_cores": 0.2}, "the hypervisor took 0.20 processors away"),
        ({"other_gpu_processes": 1}, "1 other process(es) computed on the GPU"),
        ({"other_cpu_cores": 0.09}, None),  # under a tenth of a processor
        ({"other_cpu_cores": 0.3, "cpus": 128}, "other processes used 0.30 of its 128 processors"),
        ({"other_cpu_cores": 5.0, "cpus": 128, "device": "cuda: X"}, None),  # under 5% of the processors
        ({"other_cpu_cores": 7.0, "cpus": 128, "device": "cuda: X"}, "other processes used 7.00 of its 128"),
        ({"other_gpu_processes": 0}, None),
        ({}, None),  # not measured
    ],
)
def test_a_busy_machine_is_told(measured: dict[str, Any], clause: str | None) -> None:
    lora = trained_in(make_record("lora", 0), **measured)
    assert lora.train
    text = busy(lora.train.environment)
    assert (clause in text) if clause and text else text is clause
    assert set(disturbances(lora)) == ({"train"} if clause else set())


def test_busy_runs_are_compared_in_quality_and_doubted_in_speed() -> None:
    quiet, disturbed = make_record("full", 0), trained_in(make_record("lora", 0), other_cpu_cores=0.84)
    assert reasons_against(quiet, disturbed) == []
    (doubt,) = speed_doubts(quiet, disturbed)
    assert doubt.startswith(disturbed.run_id)
    assert speed_doubts(quiet, make_record("lora", 0)) == []
    governed = [trained_in(quiet, cpu_governor="performance"), trained_in(disturbed, cpu_governor="powersave")]
    assert len(speed_doubts(*governed)) == 2
