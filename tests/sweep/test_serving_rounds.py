"""Serving is added to finished runs, never costs a run anything, and never names one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.compose import compose
from bench.config import ConfigurationError, RunConfig
from bench.identity import comparison_key, data_key, run_folder, run_id, tuning_key
from bench.record import (
    Environment,
    Generation,
    PhaseMemory,
    Record,
    ServedForm,
    ServeResult,
    Status,
    from_json,
    to_json,
)
from bench.sweep import execute as serving
from bench.sweep import execute as store
from bench.sweep.child import Outcome

SERVED = ("serve=quick", "serve.rounds=2")
HERE = Environment("cpu: x", 1, 2, "bfloat16", "sdpa", "off", "2")


@pytest.fixture
def config(smoke) -> RunConfig:
    (config,) = compose(smoke("method=base", *SERVED), multirun=False)
    return config


def a_record(config: RunConfig, **changes) -> Record:
    record = Record(
        run_id=run_id(config), comparison_key="k", sweep="s", method="base", model="m", task="t", suite="s", seed=0,
        status=Status.OK, config=config, provenance={}, started_at="2026-01-01T00:00:00+00:00",
        wall_seconds=1.0,
    )  # fmt: skip
    return replace(record, **changes)


def a_result(config: RunConfig, seconds: float) -> ServeResult:
    return ServeResult(
        settings=asdict(config.serve),
        forms=[ServedForm("base", "the base", "base", None, 10, 10, [seconds])],
        generations=[Generation("base", 8, 1, 0, seconds / 2, seconds)],
        fidelity=[],
        rounding=None,
        answers_as_evaluated=None,
        adapters=None,
        skipped={},
        memory=[PhaseMemory("serve base", int(seconds), None)],
        spans_seconds={},
        environment=HERE,
    )


def test_serving_does_not_name_a_run(smoke) -> None:
    for method in ("base", "full", "lora", "qlora"):
        plain, served = (compose(smoke(f"method={method}", *more), multirun=False)[0] for more in ((), SERVED))
        for name_of in (run_id, comparison_key, data_key, tuning_key):
            assert name_of(plain) == name_of(served)


def test_a_run_is_served_when_it_was_served_as_asked(config: RunConfig) -> None:
    plain = replace(config, serve=replace(config.serve, prompt_tokens=[]))
    result = a_result(config, 1.0)
    assert store.is_served(plain, a_record(config))
    assert not store.is_served(config, a_record(config))
    assert store.is_served(config, a_record(config, serve=result))
    assert store.is_served(config, from_json(Record, to_json(a_record(config, serve=result))))
    renamed = replace(config, serve=replace(config.serve, name="mine"))
    assert store.is_served(renamed, a_record(config, serve=result))
    longer = replace(config, serve=replace(config.serve, new_tokens=99))
    assert not store.is_served(longer, a_record(config, serve=result))


def test_every_round_is_a_process_and_all_answers_are_kept(config: RunConfig, monkeypatch) -> None:
    folder = run_folder(config)
    folder.mkdir(parents=True)
    plans = []

    def measured(folder: Path, stage: str, *others) -> Outcome:
        plans.append(from_json(RunConfig, (folder / "plan.json").read_bytes()).serve)
        (folder / f"{stage}.json").write_text(to_json(a_result(config, float(len(plans)))))
        return Outcome(Status.OK, 5.0)

    monkeypatch.setattr(serving, "run_stage", measured)
    record = serving.with_serving(config, a_record(config), lambda progress: None)
    assert [(plan.fidelity_examples, plan.adapters) for plan in plans] == [(16, [1, 4]), (0, [])]
    assert [(g.round, g.total_seconds) for g in record.serve.generations] == [(1, 1.0), (2, 2.0)]
    assert record.serve.forms[0].load_seconds == [1.0, 2.0]
    assert [entry.peak_bytes for entry in record.serve.memory] == [2]
    assert record.serve.later_environments == [HERE]
    assert record.stage_wall_seconds["serve"] == 10.0
    assert store.is_served(config, record)
    assert from_json(RunConfig, (folder / "plan.json").read_bytes()) == config
    assert from_json(ServeResult, (folder / "serve.json").read_bytes()) == record.serve


def test_a_failure_takes_nothing_from_the_run(config: RunConfig, monkeypatch) -> None:
    run_folder(config).mkdir(parents=True)
    failure = serving.Failure("serve", "serve", "gone", "try again", 1, "")
    monkeypatch.setattr(serving, "run_stage", lambda *arguments: Outcome(Status.OOM, 1.0, failure))
    earlier = a_result(replace(config, serve=replace(config.serve, new_tokens=99)), 1.0)
    record = serving.with_serving(config, a_record(config, serve=earlier), lambda progress: None)
    assert (record.status, record.serve_failure, record.serve) == (Status.OK, failure, earlier)
    assert not store.is_served(config, record)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("serve.prompt_tokens=[4000]", "serve.prompt_tokens: 4000 with serve.new_tokens=8 are beyond the 2048"),
        ("serve.adapters=[3,4]", "serve.adapters: each of"),
        ("serve.batch_sizes=[]", "serve.batch_sizes: empty"),
        ("serve.prompt_tokens=[]", "serve.adapters: needs serve.prompt_tokens"),
        ("serve.new_tokens=1", "serve.new_tokens"),
        ("serve.prompt_token=[1]", "did you mean 'prompt_tokens'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(smoke, override: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose(smoke("method=lora", "serve=quick", override), multirun=False)
    assert problem in caught.value.message()
