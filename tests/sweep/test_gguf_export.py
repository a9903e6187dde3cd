"""`bench export format=gguf check=true`: from every method's run to a file that is judged and shown in the report."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from tiny_llama import TEMPLATE, byte_level, saved

from bench.checkpoint import CARD, CHECKED, MANIFEST, Manifest
from bench.cli import main
from bench.compose import compose
from bench.identity import run_folder
from bench.record import ServeResult, from_json
from bench.report.sections import serving
from bench.stats.frames import groups, load
from bench.stats.serving import forms_frame
from bench.sweep.execute import read_record

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_children")]
METHODS = {"full": "tuned", "lora": "merged", "qlora": "merged"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, without_children: None) -> dict[str, Path]:
    """Each method trained for a few steps on a tiny Llama in a folder; full was served, too."""
    root = tmp_path_factory.mktemp("gguf")
    saved(root / "tiny", "llama", tie_word_embeddings=True, max_position_embeddings=2048)
    byte_level().save_pretrained(root / "tiny")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(12) for b in range(10)]
    (root / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    overrides = [
        "experiment=smoke", "model=folder", f"model.location={root / 'tiny'}", "model.name=tiny", "task=jsonl",
        f"task.train_file={root / 'sums.jsonl'}", "task.prompt={question}", "task.target={answer}",
        "task.metrics=[numeric]", "task.max_new_tokens=8", "task.validation_examples=4", "task.test_examples=12",
        f"method={','.join(METHODS)}", "method.learning_rate=0.01",
        *(f"paths.{name}={root / name}" for name in ("results", "artifacts", "cache")),
    ]  # fmt: skip
    assert main(["-m", *overrides]) == 0
    served = ["serve=quick", "serve.prompt_tokens=[8]", "serve.batch_sizes=[1]", "serve.repetitions=1",
              "serve.new_tokens=2", "serve.adapters=[]", "serve.fidelity_examples=null"]  # fmt: skip
    assert main([*(f"method={'full'}" if text.startswith("method=") else text for text in overrides), *served]) == 0
    return {config.method.name: run_folder(config) for config in compose(overrides, multirun=True)}


def exported(run: Path, target: Path, *more: str) -> int:
    return main(["export", str(run), f"to={target}", f"paths.cache={run.parents[2] / 'cache'}", "format=gguf", *more])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_every_method_is_exported_and_judged(runs, tmp_path: Path, method: str, kind: str, capfd) -> None:
    assert exported(runs[method], tmp_path / "out", f"gguf_type={kind}", "check=true") == 0
    form = f"{METHODS[method]}_gguf_{kind}"
    said = capfd.readouterr().out
    assert f"{form}: score" in said
    assert "of 12 answers equal" in said
    manifest = from_json(Manifest, (tmp_path / "out" / MANIFEST).read_bytes())
    assert (manifest.form, manifest.kind, manifest.judged) == (form, "model", True)
    assert set(manifest.files) == {f"{form}.gguf", CARD, CHECKED}
    result = from_json(ServeResult, (tmp_path / "out" / CHECKED).read_bytes())
    own, other = result.fidelity
    assert other.equal_answers is not None
    assert other.logits is not None
    if kind == "f16" and method == "full":
        assert (other.equal_answers, other.scores) == (12, own.scores)
    assert result.forms[1].disk_bytes == (tmp_path / "out" / f"{form}.gguf").stat().st_size
    assert {name: score.value for name, score in manifest.evaluated.scores.items()} == pytest.approx(other.scores)
    assert main(["export", str(tmp_path / "out"), "check=true"]) == 0


def test_the_report_shows_what_each_step_costs(runs, tmp_path: Path) -> None:
    for kind in ("f16", "q8_0"):
        assert exported(runs["full"], tmp_path / kind, f"gguf_type={kind}", "check=true") == 0
    sweep = load(runs["full"].parent)
    (group,) = groups(sweep)
    forms = forms_frame(group)
    full = forms[forms["arm"] == "full"].set_index("form")
    made_of = full["made_of"].dropna().to_dict()
    assert made_of == dict.fromkeys(("tuned_nf4", "tuned_gguf_f16", "tuned_gguf_q8_0"), "tuned")
    assert full.at["tuned_gguf_f16", "change"] == full.at["tuned_gguf_f16", "difference"]
    section = serving.section(group)
    assert section.parts[0].title == "What each step of shipping costs"
    assert ["full", "tuned", "tuned_gguf_q8_0"] in [row[:3] for row in map(list, section.parts[0].table.rows)]


def test_without_a_check_the_card_says_whose_scores_they_are(runs, tmp_path: Path) -> None:
    assert exported(runs["qlora"], tmp_path / "out", "form=merged_original") == 0
    text, manifest = ((tmp_path / "out" / name).read_text() for name in (CARD, MANIFEST))
    assert json.loads(manifest)["judged"] is False
    assert "was not judged" in text
    assert 'gguf_file="merged_original_gguf_f16.gguf"' in text
    file = gguf.GGUFReader(tmp_path / "out" / "merged_original_gguf_f16.gguf")
    assert file.get_field("tokenizer.chat_template").contents() == TEMPLATE


def test_an_export_of_weights_is_judged_too(runs, tmp_path: Path, capfd) -> None:
    arguments = [f"to={tmp_path / 'out'}", f"paths.cache={runs['lora'].parents[2] / 'cache'}", "check=true"]
    assert main(["export", str(runs["lora"]), *arguments]) == 0
    said = capfd.readouterr().out
    assert "unmerged_exported: score" in said
    assert "12 of 12 answers equal" in said
    record = read_record(runs["lora"])
    assert record.serve.forms[-1].form == "unmerged_exported"


def test_mistakes_are_told_before_anything_is_written(runs, tmp_path: Path, capfd) -> None:
    for settings, words in (
        (["gguf_type=q4_0"], "gguf_type: "),
        (["format=onnx"], "format: "),
        (["format=safetensors", "gguf_type=f16"], "gguf_type: only with format=gguf"),
        ([f"llama_cpp={tmp_path}"], "no convert_hf_to_gguf.py in it"),
    ):
        assert exported(runs["lora"], tmp_path / "out", *settings) == 2
        assert words in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


CONVERTER = """import sys, pathlib
folder, _, target, _, kind = sys.argv[1:]
assert {"config.json", "tokenizer.json", "model.safetensors"} <= {p.name for p in pathlib.Path(folder).iterdir()}
sys.exit("no such model") if kind == "q8_0" else pathlib.Path(target).write_text("GGUF of " + kind)
"""


def test_llama_cpp_writes_the_other_architectures(runs, tmp_path: Path, capfd) -> None:
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    how = f"llama_cpp={tmp_path / 'llama.cpp'}"
    assert exported(runs["full"], tmp_path / "out", how) == 0
    assert (tmp_path / "out" / "tuned_gguf_f16.gguf").read_text() == "GGUF of f16"
    assert exported(runs["full"], tmp_path / "again", how, "gguf_type=q8_0") == 2
    assert "ended with code 1; it said: no such model" in capfd.readouterr().err
