"""An exported run can be loaded by others, proves its scores, and is refused when something of it is another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from in_process import in_process
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.cli import main as sweep
from bench.compose import compose
from bench.export import main
from bench.identity import run_folder
from bench.record import CARD, MANIFEST, Manifest, from_json, to_json
from bench.sweep import execute, exporting
from bench.sweep import execute as serving
from bench.sweep import exporting as verifying
from bench.sweep.execute import read_record
from bench.sweep.exporting import hashed

pytestmark = pytest.mark.slow
METHODS = ("full", "lora", "qlora")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def without_children() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module in (execute, exporting, serving, verifying):
            patched.setattr(module, "run_stage", in_process)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, without_children: None) -> dict[str, Path]:
    """Each method trained for a few steps on the tiny model, and exported; with the cache that it needs."""
    root = tmp_path_factory.mktemp("exported")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(8) for b in range(5)]
    (root / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    overrides = [
        "experiment=smoke", "task=jsonl", f"task.train_file={root / 'sums.jsonl'}", "task.prompt={question}",
        "task.target={answer}", "task.metrics=[numeric,exact_match]", "task.max_new_tokens=8",
        "task.validation_examples=4", "task.test_examples=4", f"method={','.join(METHODS)}",
        "method.learning_rate=0.01", "serve=quick", "serve.prompt_tokens=[8]", "serve.batch_sizes=[1]",
        "serve.repetitions=1", "serve.new_tokens=2", "serve.adapters=[]",
        *(f"paths.{name}={root / name}" for name in ("results", "artifacts", "cache")),
    ]  # fmt: skip
    assert sweep(["-m", *overrides]) == 0
    folders = {}
    for config in compose(overrides, multirun=True):
        folders[config.method.name] = root / "exports" / config.method.name
        to = ["--to", str(folders[config.method.name])]
        licensed = ["--license", "apache-2.0"] if config.method.name == "lora" else []
        assert main([str(run_folder(config)), *to, *licensed]) == 0
    return folders


@pytest.fixture
def copy(exported: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder of its own to spoil."""

    def of(method: str) -> Path:
        return Path(shutil.copytree(exported[method], tmp_path / method))

    return of


def verify(folder: Path, *more: str, cache: Path) -> int:
    return main(["verify", str(folder), "--cache", str(cache), *more])


def cache_of(exported: dict[str, Path]) -> Path:
    return exported["lora"].parents[1] / "cache"


def rehash(folder: Path) -> None:
    """What someone does who edits a file and mends the manifest: only a look at the content can tell."""
    manifest = from_json(Manifest, (folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(to_json(replace(manifest, files=hashed(folder))))


def test_the_commands_by_real_processes(exported, tmp_path: Path) -> None:
    lora = next((exported["lora"].parents[1] / "results" / "smoke").glob("lora-*"))
    command = [sys.executable, "-m", "bench.export"]
    for arguments in (
        [str(lora), "--to", str(tmp_path / "again")],
        ["verify", str(tmp_path / "again"), "--cache", str(cache_of(exported))],
    ):
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "VERIFIED" in done.stdout


@pytest.mark.parametrize("method", METHODS)
def test_what_was_exported_is_verified(exported, method: str, capfd) -> None:
    assert verify(exported[method], cache=cache_of(exported)) == 0
    told = capfd.readouterr().out
    assert "VERIFIED" in told
    assert "4 of 4 answers are the recorded ones" in told


@pytest.mark.parametrize("form", ["merged_original", "merged_nf4"])
def test_a_served_form_is_exported_with_its_own_scores(exported, tmp_path: Path, form: str, capfd) -> None:
    run = next((exported["qlora"].parents[1] / "results" / "smoke").glob("qlora-*"))
    assert main([str(run), "--form", form, "--to", str(tmp_path / form)]) == 0
    manifest = from_json(Manifest, (tmp_path / form / MANIFEST).read_bytes())
    (entry,) = [e for e in read_record(run).serve.fidelity if e.form == form]
    assert {name: score.value for name, score in manifest.evaluated.scores.items()} == pytest.approx(entry.scores)
    assert manifest.evaluated.test_loss == entry.test_loss
    assert f"form `{form}`" in (tmp_path / form / CARD).read_text()
    assert verify(tmp_path / form, cache=cache_of(exported)) == 0
    assert "4 of 4 answers" in capfd.readouterr().out
    assert main([str(run), "--form", "merjed"]) == 2
    assert "was not served in it; it has merged, merged_original" in capfd.readouterr().err


def test_others_can_load_it(exported) -> None:
    (base,) = (cache_of(exported) / "models").iterdir()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), exported["lora"])
    full = AutoModelForCausalLM.from_pretrained(exported["full"])
    tokenizer = AutoTokenizer.from_pretrained(exported["lora"])
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1 = ?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        assert torch.isfinite(model(**ids).logits).all()
        assert torch.isfinite(full(**ids).logits).all()
    adapter = json.loads((exported["lora"] / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "tiny-random"  # and no folder of this machine


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_holds_nothing_but_safetensors_and_text(exported, method: str) -> None:
    names = {path.name for path in exported[method].rglob("*")}
    assert {path.suffix for path in exported[method].rglob("*")} <= {".safetensors", ".json", ".jinja", ".md", ".txt"}
    assert {MANIFEST, CARD, "tokenizer.json"} <= names
    manifest = from_json(Manifest, (exported[method] / MANIFEST).read_bytes())
    assert set(manifest.files) == names - {MANIFEST}
    assert str(exported[method].parents[1]) not in str(manifest.config.paths)


def test_the_card_states_scores_base_data_and_command(exported) -> None:
    text = (exported["lora"] / CARD).read_text()
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "peft"
    (results,) = metadata["model-index"]
    assert {m["type"] for r in results["results"] for m in r["metrics"]} == {"numeric", "exact_match"}
    manifest = from_json(Manifest, (exported["lora"] / MANIFEST).read_bytes())
    for said in (
        manifest.base.weights_sha256, manifest.prompt.data_fingerprint, manifest.prompt.chat_template_sha256,
        manifest.data_stream_sha256, "| numeric |", manifest.command, "apache-2.0",
    ):  # fmt: skip
        assert str(said) in body
    assert "not stated" in (exported["full"] / CARD).read_text()


def test_the_card_may_be_edited(copy, exported) -> None:
    folder = copy("lora")
    with (folder / CARD).open("a") as file:
        file.write("\nMore words.\n")
    assert verify(folder, cache=cache_of(exported)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_truncated_file_is_refused(copy, exported, method: str, capfd) -> None:
    folder = copy(method)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert verify(folder, cache=cache_of(exported)) == 1
    assert f"{weights.name}: cut short" in capfd.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_chat_template_is_refused(copy, exported, method: str, capfd) -> None:
    folder = copy(method)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", " <|end|>"))
    assert verify(folder, cache=cache_of(exported)) == 1
    assert "chat_template.jinja: changed chat template" in capfd.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_a_mismatched_tokenizer_is_refused(copy, exported, method: str, capfd) -> None:
    folder = copy(method)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert verify(folder, cache=cache_of(exported)) == 1
    assert "tokenizer.json: mismatched tokenizer" in capfd.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_base_is_refused(exported, method: str, tmp_path: Path, capfd) -> None:
    (base,) = (cache_of(exported) / "models").iterdir()
    other = Path(shutil.copytree(base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert verify(exported[method], "--base", str(other), cache=cache_of(exported)) == 1
    assert "wrong base: the weights of" in capfd.readouterr().out


def test_a_manifest_that_was_mended_hides_nothing(copy, exported, capfd) -> None:
    folder = copy("lora")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    rehash(folder)
    assert verify(folder, cache=cache_of(exported)) == 1
    told = capfd.readouterr().out
    assert "mismatched tokenizer: its vocabulary" in told
    assert "changed chat template: prompts" in told


def test_other_weights_do_not_reproduce_the_scores(copy, exported, capfd) -> None:
    folder = copy("full")
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: torch.randn_like(tensor) for name, tensor in tensors.items()}, weights, {"format": "pt"})
    manifest = from_json(Manifest, (folder / MANIFEST).read_bytes())
    wrong = {name: replace(score, value=0.9) for name, score in manifest.evaluated.scores.items()}
    claimed = replace(manifest, evaluated=replace(manifest.evaluated, scores=wrong))
    (folder / MANIFEST).write_text(to_json(claimed))
    rehash(folder)
    assert verify(folder, cache=cache_of(exported)) == 1
    assert "0.9000 recorded" in capfd.readouterr().out


def test_mistakes_are_told_and_nothing_is_done(exported, tmp_path: Path, capfd) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    lora = next((exported["lora"].parents[1] / "results" / "smoke").glob("lora-*"))
    for arguments, told in (
        ([str(tmp_path)], "no finished run in it"),
        ([str(lora), "--to", str(tmp_path / "mine")], "is no earlier export"),
        (["verify", str(tmp_path)], f"no {MANIFEST} in it"),
    ):
        assert main(arguments) == 2
        assert told in capfd.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
