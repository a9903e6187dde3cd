"""An exported run can be loaded by others, states its scores, and is refused when something of it is another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from in_process import in_process
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.cli import main
from bench.compose import compose
from bench.identity import run_folder
from bench.record import CARD, MANIFEST, Manifest, from_json
from bench.sweep import execute, exporting, fetching
from bench.sweep.execute import read_record

pytestmark = pytest.mark.slow
METHODS = ("full", "lora", "qlora")


@pytest.fixture(scope="module", autouse=True)
def without_children() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module in (execute, exporting, fetching):
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
    assert main(["-m", *overrides]) == 0
    folders = {}
    for config in compose(overrides, multirun=True):
        folders[config.method.name] = root / "exports" / config.method.name
        settings = [f"to={folders[config.method.name]}"]
        settings += ["license=apache-2.0"] if config.method.name == "lora" else []
        assert main(["export", str(run_folder(config)), *settings]) == 0
    return folders


@pytest.fixture
def copy(exported: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder of its own to spoil."""

    def of(method: str) -> Path:
        return Path(shutil.copytree(exported[method], tmp_path / method))

    return of


def check(folder: Path, *more: str) -> int:
    return main(["export", str(folder), "check=true", *more])


def cache_of(exported: dict[str, Path]) -> Path:
    return exported["lora"].parents[1] / "cache"


@pytest.mark.parametrize("method", METHODS)
def test_what_was_exported_is_checked_with_its_base(exported, method: str, capfd) -> None:
    (base,) = (cache_of(exported) / "models").glob("tiny-*")
    assert check(exported[method], f"base={base}") == 0
    assert "every file is the one that was written" in capfd.readouterr().out


@pytest.mark.parametrize("form", ["merged_original", "merged_nf4"])
def test_a_served_form_is_exported_with_its_own_scores(exported, tmp_path: Path, form: str, capfd) -> None:
    run = next((exported["qlora"].parents[1] / "results" / "smoke").glob("qlora-*"))
    assert main(["export", str(run), f"form={form}", f"to={tmp_path / form}"]) == 0
    manifest = from_json(Manifest, (tmp_path / form / MANIFEST).read_bytes())
    (entry,) = [e for e in read_record(run).serve.fidelity if e.form == form]
    assert {name: score.value for name, score in manifest.evaluated.scores.items()} == pytest.approx(entry.scores)
    assert manifest.evaluated.test_loss == entry.test_loss
    assert f"form `{form}`" in (tmp_path / form / CARD).read_text()
    assert main(["export", str(run), "form=merjed"]) == 2
    assert "was not served in it; it has merged, merged_original" in capfd.readouterr().err


def test_others_can_load_it(exported) -> None:
    (base,) = (cache_of(exported) / "models").glob("tiny-*")
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


def test_the_card_may_be_edited(copy) -> None:
    folder = copy("lora")
    with (folder / CARD).open("a") as file:
        file.write("\nMore words.\n")
    assert check(folder) == 0


def truncated(folder: Path) -> None:
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])


def another_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", " <|end|>"))


def another_tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncated, "cut short"),
        (another_template, "chat_template.jinja: changed chat template"),
        (another_tokenizer, "tokenizer.json: mismatched tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: not part of the export"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json: missing"),
    ],
)
def test_a_changed_file_is_refused(spoil: Callable[[Path], None], words: str, copy, capfd) -> None:
    folder = copy("lora")
    spoil(folder)
    assert check(folder) == 1
    assert words in capfd.readouterr().out


def test_a_wrong_base_is_refused(exported, tmp_path: Path, capfd) -> None:
    (base,) = (cache_of(exported) / "models").glob("tiny-*")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert check(exported["lora"], f"base={other}") == 1
    assert "wrong base: the weights of" in capfd.readouterr().out
    assert check(exported["lora"], f"base={tmp_path}") == 2


def test_mistakes_are_told_and_nothing_is_done(exported, tmp_path: Path, capfd) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    lora = next((exported["lora"].parents[1] / "results" / "smoke").glob("lora-*"))
    for arguments, words in (
        ([str(tmp_path)], "no finished run in it"),
        ([str(lora), f"to={tmp_path / 'mine'}"], "is no earlier export"),
        ([str(lora), "licence=mit"], "did you mean 'license'?"),
        ([str(tmp_path), "check=true"], f"no {MANIFEST} in it"),
        ([str(tmp_path), "check=yes"], "true or false"),
    ):
        assert main(["export", *arguments]) == 2
        assert words in capfd.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
