"""A sweep's rates come from the file that it names, for exactly what was tuned, or the sweep does not start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.compose import Trial, Tuning, compose, read_rates
from bench.config import RunConfig
from bench.identity import comparison_key, data_key, run_id, tuning_key
from bench.mistakes import ConfigurationError
from bench.stats.rates import TuneConfig
from bench.sweep.execute import stages
from bench.sweep.tuning import compose_tuning, keep_rates, keep_tuning, trial


def tuning_of(config: RunConfig, rate: float | None) -> Tuning:
    trials = [Trial(3e-4, 2.4, 20, 100.0, "a"), Trial(1e-3, None, 20, 40.0, "b")]
    return Tuning(
        tuning_key(config), config.method.name, config.model.name, config.task.name, rate, None, trials, 1000, None,
        None, "python -m bench tune", None, None, "2026-01-01T00:00:00+00:00",
    )  # fmt: skip


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """A file with a rate for lora, and a failed search for full."""
    path = tmp_path / "tune" / "rates.yaml"
    lora, full = compose(["method=lora,full"], multirun=True)
    keep_tuning(path, tuning_of(lora, 3e-4))
    keep_tuning(path, tuning_of(full, None))
    return path


def test_a_file_is_read_back_as_it_was_written(rates: Path) -> None:
    lora, full = compose(["method=lora,full"], multirun=True)
    assert read_rates(rates).tunings == [tuning_of(lora, 3e-4), tuning_of(full, None)]


def test_a_new_search_takes_the_place_of_the_old(rates: Path) -> None:
    (lora,) = compose(["method=lora"], multirun=False)
    keep_tuning(rates, tuning_of(lora, 1e-3))
    assert [(t.method, t.learning_rate) for t in read_rates(rates).tunings] == [("full", None), ("lora", 1e-3)]


def test_the_rate_is_taken_and_its_source_is_told(rates: Path) -> None:
    configs = compose(["method=base,lora", "seed=0,1", f"rates={rates}"], multirun=True)
    tuned = [c for c in configs if c.method.name == "lora"]
    assert [c.method.learning_rate for c in tuned] == [3e-4, 3e-4]
    assert all(c.learning_rate_source.startswith(f"tuned: {rates} sha256 ") for c in tuned)
    assert {c.learning_rate_source for c in configs if c.method.name == "base"} == {"config"}


def test_where_a_rate_came_from_is_no_part_of_a_run(rates: Path) -> None:
    (tuned,) = compose(["method=lora", f"rates={rates}"], multirun=False)
    (by_hand,) = compose(["method=lora", "method.learning_rate=3e-4"], multirun=False)
    assert run_id(tuned) == run_id(by_hand)
    assert comparison_key(tuned) == comparison_key(by_hand)


@pytest.mark.parametrize("change", ["seed=3", "suite=none", "train.micro_batch=2", "task.max_new_tokens=8"])
def test_a_search_holds_for_other_seeds_suites_and_metrics(rates: Path, change: str) -> None:
    (config,) = compose(["method=lora", change, f"rates={rates}"], multirun=False)
    assert config.method.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=qlora"], "has no rate for qlora on smollm2-135m, docstrings"),
        (["method=lora", "train.epochs=3"], "with these settings and this budget; it holds lora on"),
        (["method=lora", "method.adapter.rank=4"], "has no rate for lora"),
        (["method=full"], "found no rate with a finite loss"),
        (["method=lora", "method.learning_rate=1e-4"], "method.learning_rate: given together with rates"),
    ],
)
def test_what_was_not_tuned_is_a_mistake(rates: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose([*overrides, f"rates={rates}"], multirun=True)
    assert expected in caught.value.message()


@pytest.mark.parametrize("text", ["tunings: {", "tunings: 3", "", "{schema_version: 2, tunings: []}"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"rates\.yaml: not readable"):
        compose(["method=lora", f"rates={tmp_path / 'rates.yaml'}"], multirun=False)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: no such file"):
        compose(["method=lora", "rates=nowhere.yaml"], multirun=False)


def test_the_file_is_kept_beside_the_runs(rates: Path, tmp_path: Path) -> None:
    (config,) = compose(["method=lora", f"rates={rates}", f"paths.results={tmp_path / 'results'}"], multirun=False)
    keep_rates(config)
    kept = tmp_path / "results" / "default" / "rates.yaml"
    assert kept.read_text() == rates.read_text()
    keep_rates(replace(config, rates=str(kept)))  # onto itself
    assert kept.read_text() == rates.read_text()


def test_a_sweep_s_overrides_make_one_search_a_method_and_budget() -> None:
    overrides = ["method=base,full,lora", "seed=0,1,2", "suite=quick,none", "train.epochs=1,2", "tune.max_points=3"]
    settings, arms = compose_tuning(overrides)
    assert settings.max_points == 3
    assert settings.factor == TuneConfig().factor
    assert [(arm.method.name, arm.train.epochs) for arm in arms] == [("full", 1), ("full", 2), ("lora", 1), ("lora", 2)]


def test_the_settings_file_holds_the_defaults_of_the_type() -> None:
    settings, _ = compose_tuning(["method=lora"])
    assert settings == TuneConfig()


def test_all_mistakes_of_a_search_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose_tuning(["method=lorra", "tune.max_pionts=3", "tune.factor=1", "tune.rates=[0.1,-1]", "train.epoch=2"])
    text = caught.value.message()
    assert len(caught.value.problems) == 5
    hints = ("did you mean 'max_points'", "tune.factor", "tune.rates", "did you mean 'lora'", "did you mean 'epochs'")
    for hint in hints:
        assert hint in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=base"], "none of the methods trains"),
        (["method=lora", "method.learning_rate=1e-4,1e-3"], "is what is searched"),
        (["method=lora", "tune.rates=["], "tune: "),
    ],
)
def test_what_cannot_be_searched_is_a_mistake(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        compose_tuning(overrides)


def test_a_search_reads_no_rates(rates: Path) -> None:
    with pytest.raises(ConfigurationError, match="finds the rates, and reads none"):
        compose_tuning(["method=lora", f"rates={rates}"])


def test_a_trial_trains_as_the_sweep_does_and_evaluates_nothing() -> None:
    settings, (arm,) = compose_tuning(["method=lora", "seed=0", "tracking=wandb"])
    tried = trial(arm, settings, 1e-3)
    assert stages(tried) == ["train"]
    assert tried.method == replace(arm.method, learning_rate=1e-3)
    assert tried.seed == settings.seed != arm.seed
    assert tried.tracking.kind == "none"
    assert data_key(tried) == data_key(arm)
    assert run_id(tried) != run_id(replace(tried, trial=None))  # it is not taken for an ordinary run
    assert comparison_key(tried) != comparison_key(replace(tried, trial=None))


def test_a_trial_is_never_longer_than_the_sweep_s_runs() -> None:
    settings, (arm,) = compose_tuning(["method=lora", "train.max_steps=8", "tune.max_steps=12"])
    assert trial(arm, settings, 1e-3).train.max_steps == 8
    settings, (arm,) = compose_tuning(["method=lora", "tune.max_steps=12"])
    assert trial(arm, settings, 1e-3).train.max_steps == 12
