"""Overrides become checked runs; every YAML file composes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.compose import CONFIG_FOLDER, choices, compose, explicit, is_search
from bench.mistakes import ConfigurationError

GROUPS = ("model", "method", "task", "suite", "train", "hardware", "tracking", "serve", "experiment")
COMPLETIONS = {  # what a file leaves to the user
    ("model", "folder"): ["model.location=somewhere"],
    ("task", "data"): ["task.train_file=data.jsonl"],
    ("task", "jsonl"): ["task.train_file=data.jsonl"],
    ("suite", "local"): ["suite.path=somewhere"],
}
FILES = [(group, name) for group in GROUPS for name in choices(group)]


@pytest.mark.parametrize(("group", "name"), FILES, ids="/".join)
def test_every_yaml_file_composes(group: str, name: str) -> None:
    extra = COMPLETIONS.get((group, name), [])
    configs = compose([f"{group}={name}", *extra], multirun=group == "experiment")
    assert configs
    if group in ("model", "method", "suite", "train", "hardware", "tracking", "serve"):
        described = getattr(configs[0], group)
        assert getattr(described, "name", name) == name


def test_no_yaml_file_is_missed() -> None:
    found = {p.relative_to(CONFIG_FOLDER) for p in CONFIG_FOLDER.rglob("*.yaml") if p.parent.name != "claims"}
    assert found == {Path(f"{group}/{name}.yaml") for group, name in FILES} | {
        *(Path(f"hydra/launcher/{name}.yaml") for name in choices("hydra/launcher")),  # tests/sweep/test_launchers.py
        Path("config.yaml"),
        Path("launch.yaml"),
        Path("tune.yaml"),
        Path("plan.yaml"),
    }
    assert len(FILES) == 84, "a new YAML file: count it here"


def test_what_the_inputs_hold_cannot_be_set() -> None:
    with pytest.raises(ConfigurationError, match=r"content\.weights: follows from what the inputs hold"):
        explicit(["content.weights=abc"])


def test_all_wrong_overrides_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        explicit(["method=lorra", "train.epoch=2", "nonsense", "seeds=1"])
    text = caught.value.message()
    assert len(caught.value.problems) == 4
    assert "did you mean 'lora'?" in text
    assert "did you mean 'epochs'?" in text
    assert "did you mean 'seed'?" in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("method.adaptr.rank=8", "method.adapter.rank"), ("methd.adapter.rank=8", "method.adapter.rank"),
     ("method.adapter.rnk=8", "rank")],
)  # fmt: skip
def test_a_mistake_in_any_part_of_a_name_is_found(given: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'"):
        explicit([given])


def test_a_wrong_value_in_any_job_stops_the_whole_sweep() -> None:
    with pytest.raises(ConfigurationError, match=r"train\.micro_batch: 3 does not divide"):
        compose(["method=full,lora", "train.micro_batch=8,3"], multirun=True)


def test_the_last_of_two_overrides_of_a_key_counts() -> None:
    configs = compose(["method=full,lora", "seed=0,1", "seed=2"], multirun=True)
    assert [(c.method.name, c.seed) for c in configs] == [("full", 2), ("lora", 2)]


def test_a_sweep_is_the_product_of_its_lists() -> None:
    configs = compose(["method=full,lora", "seed=0,1,2"], multirun=True)
    assert {(c.method.name, c.seed) for c in configs} == {(m, s) for m in ("full", "lora") for s in (0, 1, 2)}


def test_a_setting_need_not_stand_in_the_yaml_file() -> None:
    (config,) = compose(["task.system=Be brief.", "hardware.threads=2"], multirun=False)
    assert config.task.system == "Be brief."
    assert config.hardware.threads == 2


def test_lora_and_qlora_differ_in_the_base_alone() -> None:
    lora, qlora = compose(["method=lora,qlora"], multirun=True)
    assert lora.method.adapter == qlora.method.adapter
    assert lora.method.learning_rate == qlora.method.learning_rate
    assert qlora.method.quantization is not None


def test_a_range_needs_a_sweeper_that_searches() -> None:
    with pytest.raises(ConfigurationError, match=r"method\.learning_rate: not a list, but a range to search"):
        compose(["method=lora", "method.learning_rate=interval(1e-5,1e-3)"], multirun=True)
    assert is_search(["hydra/sweeper=optuna"])
    assert not is_search(["hydra/sweeper=basic", "method=lora"])


def test_a_sweeper_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="hydra/sweeper"):
        compose(["method=lora", "hydra/sweeper=nowhere"], multirun=True)


ODD_PATHS = [
    "my set.jsonl",
    "[x]/a",
    "lr=0.1/a",
    "#1",
    "caf\u00e9",
    "a'b",
    'a"b',
    "{x}",
    "(1)",
    "a:b",
    "C:\\new",
    "end\\",
    "@home",
]
ODD_TEXTS = ["\\boxed{{x}} {q}", "{q}\\n", "x\\\\ {q}", "it's {q}", "a, b {q}", "null {q}"]


@pytest.mark.parametrize("multirun", [False, True])
def test_paths_and_templates_are_read_as_they_are(multirun: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ODD_PATHS:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{}")
    asked = ["task=jsonl", "model=tiny-random"]
    for path in ODD_PATHS:
        (config,) = compose([*asked, f"task.train_file={path}", f"paths.cache={path}"], multirun)
        assert (config.task.train_file, config.paths.cache) == (path, path)
    for text in ODD_TEXTS:
        (config,) = compose([*asked, "task.train_file=@home", f"task.prompt={text}", "task.system=null"], multirun)
        assert (config.task.prompt, config.task.system) == (text, None)


def test_a_comma_separates_paths_in_a_sweep_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b c", "a,b c"):
        Path(name).write_text("{}" + name)
    asked = ["task=jsonl", "model=tiny-random", "task.train_file=a,b c"]
    assert [config.task.train_file for config in compose(asked, multirun=True)] == ["a", "b c"]
    assert [config.task.train_file for config in compose(asked, multirun=False)] == ["a,b c"]


def test_the_default_learning_rate_goes_by_the_size_of_the_model() -> None:
    models = "model=smollm2-135m,llama-3.2-1b,llama-3.1-8b,llama-3.1-70b,tiny-random"
    full, lora = (
        [config.method.learning_rate for config in compose([models, f"method={name}"], multirun=True)]
        for name in ("full", "lora")
    )
    assert full == [5e-5, 2e-5, 2e-5, 1e-5, 5e-5]
    assert lora == [5e-4, 2e-4, 2e-4, 1e-4, 5e-4]


def test_a_given_learning_rate_wins_over_the_default_by_size() -> None:
    given = compose(["model=llama-3.1-8b", "method=lora", "method.learning_rate=3e-4,1e-5"], multirun=True)
    assert [config.method.learning_rate for config in given] == [3e-4, 1e-5]
