"""A run description checks itself, and says everything that is wrong at once."""

from __future__ import annotations

import dataclasses

import pytest

from bench import identity
from bench.compose import compose
from bench.config import ConfigurationError, from_mapping, to_mapping


@pytest.fixture
def lora():
    (config,) = compose(["method=lora"], multirun=False)
    return config


def test_a_config_survives_its_json_form(lora) -> None:
    assert from_mapping(to_mapping(lora)) == lora


def test_a_config_is_frozen(lora) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        lora.seed = 1


def test_all_mistakes_are_reported_at_once(lora) -> None:
    mapping = to_mapping(lora)
    mapping["train"] |= {"batch_size": -1, "learning_rat": 1, "schedule": "cosin"}
    mapping["seed"] = "zero"
    with pytest.raises(ConfigurationError) as caught:
        from_mapping(mapping)
    text = caught.value.message()
    assert len(caught.value.problems) == 4
    assert "train.batch_size" in text
    assert "given -1" in text
    assert "'cosine', 'linear'" in text  # what is allowed
    assert "train.learning_rat: no such setting" in text


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("train", {"micro_batch": 5}, "does not divide train.batch_size=16"),
        ("train", {"max_length": 100_000}, "beyond the 8192 positions"),
        ("method", {"adapter": None}, "method.adapter: missing"),
        ("method", {"learning_rate": None}, "method.learning_rate: missing"),
        ("method", {"shots": 2}, "method.shots"),
        ("task", {"source": "files"}, "task.train_file: missing"),
        ("task", {"source": "hub"}, "task.hub_dataset: missing"),
        ("task", {"metrics": ["label"]}, "task.labels: missing"),
        ("suite", {"source": "local"}, "suite.path: missing"),
    ],
)
def test_settings_that_do_not_fit_together(lora, section, change, expected) -> None:
    mapping = to_mapping(lora)
    mapping[section] |= change
    with pytest.raises(ConfigurationError, match=expected):
        from_mapping(mapping)


def test_the_run_id_follows_from_what_is_measured(lora) -> None:
    def with_(**changes):
        return identity.run_id(dataclasses.replace(lora, **changes))

    same = identity.run_id(lora)
    assert with_(sweep="other") == same
    assert with_(tracking=dataclasses.replace(lora.tracking, kind="wandb")) == same
    assert with_(hardware=dataclasses.replace(lora.hardware, price_usd_per_hour=2.0)) == same
    assert with_(seed=1) != same
    assert with_(train=dataclasses.replace(lora.train, micro_batch=8)) != same


def test_methods_and_seeds_share_a_comparison_key() -> None:
    configs = compose(["method=full,lora,qlora", "seed=0,1", "train.micro_batch=4,8"], multirun=True)
    assert len({identity.run_id(c) for c in configs}) == 12
    assert len({identity.comparison_key(c) for c in configs}) == 1
    (other,) = compose(["method=full", "train.batch_size=8"], multirun=False)
    assert identity.comparison_key(other) != identity.comparison_key(configs[0])


def test_the_untuned_base_is_one_run_for_all_seeds_and_budgets() -> None:
    configs = compose(["method=base", "seed=0,1,2", "train.epochs=1,2"], multirun=True)
    assert len(configs) == 1
    fewshot = compose(["method=base_fewshot", "seed=0,1,2"], multirun=True)
    assert len(fewshot) == 3  # the seed chooses the examples shown
