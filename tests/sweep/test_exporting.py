"""An exported run can be loaded by others, states its scores, and is refused when something of it is another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.checkpoint import CARD, MANIFEST, Manifest
from bench.cli import main
from bench.compose import compose
from bench.identity import run_folder
from bench.record import from_json
from bench.sweep.execute import read_record

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_children")]
METHODS = ("full", "lora", "qlora")


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
        settings = [f"to={folders[config.method.name]}", f"paths.cache={root / 'cache'}"]
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


def base_of(exported: dict[str, Path]) -> Path:
    return next((cache_of(exported) / "models").glob("tiny-*"))


@pytest.mark.parametrize("method", METHODS)
def test_what_was_exported_is_checked_with_its_base(exported, method: str, capfd) -> None:
    base = base_of(exported)
    assert check(exported[method], f"base={base}") == 0
    assert "every file is the one that was written" in capfd.readouterr().out


@pytest.mark.parametrize("form", ["merged_original", "merged_nf4"])
def test_a_served_form_is_exported_with_its_own_scores(exported, tmp_path: Path, form: str, capfd) -> None:
    run = next((exported["qlora"].parents[1] / "results" / "smoke").glob("qlora-*"))
    own = f"paths.cache={cache_of(exported)}"
    assert main(["export", str(run), f"form={form}", f"to={tmp_path / form}", own]) == 0
    manifest = from_json(Manifest, (tmp_path / form / MANIFEST).read_bytes())
    (entry,) = [e for e in read_record(run).serve.fidelity if e.form == form]
    assert {name: score.value for name, score in manifest.evaluated.scores.items()} == pytest.approx(entry.scores)
    assert manifest.evaluated.test_loss == entry.test_loss
    assert f"form `{form}`" in (tmp_path / form / CARD).read_text()
    assert main(["export", str(run), "form=merjed"]) == 2
    assert "was not served in it; it has merged, merged_original" in capfd.readouterr().err


def test_others_can_load_it(exported) -> None:
    base = base_of(exported)
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
    base = base_of(exported)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert check(exported["lora"], f"base={other}") == 1
    assert "wrong base: the weights of" in capfd.readouterr().out
    assert check(exported["lora"], f"base={tmp_path}") == 2


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def trap(exported, tmp_path: Path) -> Iterator[Path]:
    """A base model whose code, if it runs, leaves a mark; and a folder that is somebody else's."""
    folder = Path(shutil.copytree(base_of(exported), tmp_path / "trap"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "trap", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')\nraise SystemExit\n")
    before = listing(tmp_path)
    yield folder
    assert not (tmp_path / "harmed").exists()
    after = listing(tmp_path)
    assert {name: after[name] for name in before} == before


def forge(path: Path, **model: object) -> None:
    content = json.loads(path.read_text())
    for part in (content, content.get("config", {})):
        if "model" in part and isinstance(part["model"], dict):
            part["model"] |= model
    path.write_text(json.dumps(content))


def test_code_that_comes_with_a_received_run_is_not_run(
    exported, trap: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    given = next((exported["lora"].parents[1] / "results" / "smoke").glob("lora-*"))
    run = Path(shutil.copytree(given, tmp_path / "received" / given.name))
    asked = ["export", str(run), f"to={tmp_path / 'out'}", f"paths.cache={cache_of(exported)}"]
    for name in ("plan.json", "record.json"):
        forge(run / name, source="folder", location=str(trap), trust_remote_code=True)
        monkeypatch.chdir(tmp_path)
        if name == "plan.json":  # it is not read
            assert main(asked) == 0
            shutil.rmtree(tmp_path / "out")
        else:
            assert main(asked) == 2
            assert "a file cannot allow that" in capfd.readouterr().err
    forge(run / "record.json", trust_remote_code=False)  # then transformers refuses
    assert main(asked) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hidden", [".code.py", ".git/hooks", "__pycache__/code.pyc"])
def test_a_check_runs_nothing_and_sees_every_file(copy, trap: Path, hidden: str, capfd) -> None:
    folder = copy("lora")
    forge(folder / MANIFEST, source="folder", location=str(trap), trust_remote_code=True)
    assert check(folder) == 0
    (folder / hidden).parent.mkdir(exist_ok=True)
    shutil.copy(trap / "code.py", folder / hidden)
    assert check(folder) == 1
    assert f"{hidden}: not part of the export" in capfd.readouterr().out


def test_a_manifest_names_no_file_outside_and_links_are_refused(copy, trap: Path, capfd) -> None:
    folder = copy("lora")
    content = json.loads((folder / MANIFEST).read_text())
    for name in ("../trap/code.py", str(trap / "config.json")):
        content["files"][name] = {"bytes": 1, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps(content))
    (folder / CARD).unlink()
    (folder / CARD).symlink_to(trap / "code.py")
    assert check(folder) == 1
    said = capfd.readouterr().out
    assert said.count("leads out of the folder") == 2
    assert f"{CARD}: a link" in said


def test_a_link_among_the_weights_is_not_exported(exported, trap: Path, tmp_path: Path, capfd) -> None:
    results, artifacts = (exported["lora"].parents[1] / name for name in ("results", "artifacts"))
    weights = next((artifacts / "smoke").glob("lora-*"))
    own = Path(shutil.copytree(weights, tmp_path / "artifacts" / "smoke" / weights.name))
    (own / "generation_config.json").symlink_to(trap / "code.py")
    run = next((results / "smoke").glob("lora-*"))
    places = [f"paths.artifacts={tmp_path / 'artifacts'}", f"paths.cache={cache_of(exported)}"]
    assert main(["export", str(run), f"to={tmp_path / 'out'}", *places]) == 2
    assert "generation_config.json: a link" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mistakes_are_told_and_nothing_is_done(exported, tmp_path: Path, capfd) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    lora = next((exported["lora"].parents[1] / "results" / "smoke").glob("lora-*"))
    for arguments, words in (
        ([str(tmp_path)], "no finished run in it"),
        ([str(lora), f"to={tmp_path / 'mine'}"], "is no earlier export"),
        ([str(lora), "licence=mit"], "did you mean 'license'?"),
        ([str(tmp_path), "check=true"], f"no {MANIFEST} in it"),
        ([str(tmp_path), "check=perhaps"], "expected yes or no"),
    ):
        assert main(["export", *arguments]) == 2
        assert words in capfd.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
