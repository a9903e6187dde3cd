"""Judging what others trained: adapters by plain Trainer and PEFT, checkpoints, predictions, and what is refused."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import in_process
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from bench import load
from bench.cli import main
from bench.mistakes import ConfigurationError
from bench.report.build import read_groups
from bench.report.sections import fairness
from bench.stats.compare import compare
from bench.sweep import execute, fetching, judging

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # as users' logs have it
]
MODULES = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the task's file and the base as `base/`; stages run in this process."""
    folder = tmp_path_factory.mktemp("judged")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(12) for b in range(30)]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    with pytest.MonkeyPatch.context() as patched:
        for module in (execute, fetching):
            patched.setattr(module, "run_stage", in_process)
        assert main(["method=base", "sweep=first", *overrides(folder)]) == 0  # makes the tiny model
        shutil.copytree(folder / "cache/models/tiny-random", folder / "base")
        yield folder


def overrides(root: Path) -> list[str]:
    return [
        "experiment=smoke", "task=jsonl", f"task.train_file={root / 'sums.jsonl'}", "task.prompt={question}",
        "task.target={answer}", "task.metrics=[rougeL,exact_match]", "task.max_new_tokens=8",
        "task.validation_examples=4", "task.test_examples=12", "hardware.threads=1",
        *(f"paths.{name}={root / name}" for name in ("results", "artifacts", "cache")),
    ]  # fmt: skip


def train(base: Path, folder: Path, **lora: Any) -> Path:
    """Four steps of plain Trainer on an adapter, or on all weights; the folder as save_model leaves it."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **lora))
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("1 + 2 = ? 3")["input_ids"]
    how = {"max_steps": 4, "learning_rate": 0.01, "logging_steps": 1, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(output_dir=str(folder), save_strategy="no", disable_tqdm=True, **how)
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
    trainer.train()
    trainer.save_model(str(folder))
    trainer.save_state()
    return folder


@pytest.fixture(scope="module")
def adapter(root: Path) -> Path:
    return train(root / "base", root / "adapter", r=4, target_modules=MODULES)


@pytest.fixture(scope="module")
def arms(root: Path, adapter: Path) -> dict[str, Path]:
    saved = {"r": 4, "target_modules": MODULES, "modules_to_save": ["embed_tokens", "lm_head"]}
    predictions = root / "predictions.jsonl"
    written = next((root / "results/first").glob("base-*/samples.jsonl.gz")).read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(written).splitlines()]
    lines = [{"id": row["example_id"], "prediction": row["reference"]} for row in reversed(rows)]
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "plain": adapter,
        "saved": train(root / "base", root / "saved", **saved),
        "ranks": train(root / "base", root / "ranks", r=4, rank_pattern={"q_proj": 2}, target_modules=MODULES),
        "whole": train(root / "base", root / "whole"),
        "given": predictions,
    }


def judge(root: Path, given: dict[str, Path], base: str = "base", *more: str) -> int:
    listed = ", ".join(f"{name}: {place}" for name, place in given.items())
    bases = ",".join(str(root / name) for name in base.split(","))
    return main(["judge", f"base={bases}", f"arms={{{listed}}}", *overrides(root), *more])


@pytest.fixture(scope="module")
def judged(root: Path, arms: dict[str, Path]) -> Path:
    assert judge(root, arms) == 0
    return root / "results" / "judged"


def test_every_kind_of_arm_is_compared_on_the_same_examples(judged: Path) -> None:
    (group,) = read_groups(judged)[1]
    assert dict(zip(group.arms["arm"], group.arms["family"], strict=True)) == {
        "base": "base", "whole": "full", "plain": "lora", "ranks": "lora", "saved": "lora", "given": "predictions",
    }  # fmt: skip
    found = compare(group)
    assert found.refusals == []
    scores = found.comparisons.query("measure == 'rougeL'")
    pairs = set(map(frozenset, zip(scores["arm"], scores["baseline"], strict=True)))
    assert len(pairs) == 15  # each of six with each other
    assert set(scores["examples"]) == {12}
    given = group.runs.set_index("arm").loc["given"]
    assert (given["score"], given["test_loss"]) == (1.0, pytest.approx(float("nan"), nan_ok=True))


def test_an_adapter_answers_as_peft_does(judged: Path, adapter: Path, root: Path) -> None:
    """The loss of the reference answers, by PEFT and transformers alone."""
    sweep = load(judged)
    prepared = next((root / "cache").glob("data/*/test"))
    from datasets import load_from_disk

    rows = list(load_from_disk(str(prepared)))
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    wanted = {}
    for row in rows:
        ids, count = torch.tensor([row["prompt_ids"] + row["answer_ids"]]), len(row["answer_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, -count - 1 : -1]
        wanted[row["example_id"]] = float(torch.nn.functional.cross_entropy(logits, ids[0, -count:], reduction="sum"))
    found = sweep.samples[sweep.samples["arm"] == "plain"].set_index("example_id")["loss"].astype(float)
    assert found.to_dict() == pytest.approx(wanted, rel=0.02)
    other = sweep.samples[sweep.samples["arm"] == "base"].set_index("example_id")["loss"].astype(float)
    assert other.to_dict() != pytest.approx(wanted, rel=0.02)


def test_facts_of_training_have_their_source_and_others_are_unknown(judged: Path) -> None:
    (group,) = read_groups(judged)[1]
    (part,) = [part for part in fairness.section(group).parts if part.title == "Trained elsewhere"]
    assert part.table is not None
    rows = {row[0]: dict(zip(part.table.headers[1:], row[1:], strict=True)) for row in part.table.rows}
    assert rows["r (adapter_config.json)"] | {} == {
        "plain": "4", "ranks": "4", "saved": "4", "whole": "unknown", "given": "unknown",
    }  # fmt: skip
    assert rows["rank_pattern (adapter_config.json)"]["ranks"] == "{'q_proj': 2}"
    assert rows["global_step (trainer_state.json)"]["whole"] == "4"
    assert rows["learning_rate, highest logged (trainer_state.json)"]["plain"] == "0.01"
    assert set(rows["training data"].values()) == {"unknown"}
    assert "saw test examples in training" in part.lead


def test_the_same_command_again_does_nothing(judged: Path, root: Path, arms: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in judged.glob("*/record.json")}
    assert judge(root, arms) == 0
    assert {path: path.stat().st_mtime_ns for path in judged.glob("*/record.json")} == before


def refused(root: Path, place: Path, base: str = "base") -> str:
    with pytest.raises(ConfigurationError) as caught:
        judging.judged(str(root / base), f"{{a: {place}}}", overrides(root))
    return caught.value.message()


def copied(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a folder with other entries in its configuration."""
    shutil.copytree(source, target)
    name = next(n for n in ("adapter_config.json", "config.json") if (target / n).exists())
    content = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps(content | changes))
    return target


def test_a_wrong_base_is_refused(root: Path, adapter: Path, arms: dict[str, Path], tmp_path: Path) -> None:
    assert "whose weights are not those of whole" in refused(root, adapter, "whole")
    gone = copied(adapter, tmp_path / "gone", base_model_name_or_path="/no/such/folder")
    assert judging.judged(str(root / "whole"), f"{{a: {gone}}}", overrides(root))  # it cannot be known
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    base.config.hidden_size, base.config.head_dim = 32, 8
    small = type(base)(base.config)
    small.save_pretrained(tmp_path / "small")
    shutil.copytree(root / "base", tmp_path / "other")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "small" / name, tmp_path / "other" / name)
    assert "tensors do not fit it, such as model.layers.0" in refused(tmp_path, gone, "other")
    wide = copied(arms["whole"], tmp_path / "wide", vocab_size=999)
    assert "wrong base: its vocab_size is 999" in refused(root, wide)
    hub = ["base=llama-3.2-1b", f"arms={{a: {copied(adapter, tmp_path / 'hub', base_model_name_or_path='org/other')}}}"]
    assert main(["judge", *hub, *overrides(root)]) == 2


def test_a_wrong_base_that_only_its_child_sees_is_refused_there(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is made by the child, so that its weights are known there alone."""
    other = tmp_path / "elsewhere"
    shutil.copytree(root / "base", other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(other)
    wrong = train(other, tmp_path / "wrong", r=4, target_modules=MODULES)
    assert main(["judge", "base=tiny-random", f"arms={{a: {wrong}}}", "sweep=child", *overrides(root)]) == 2
    assert "whose weights are not those of tiny-random" in capsys.readouterr().err


def test_damaged_files_and_other_kinds_are_refused(root: Path, adapter: Path, tmp_path: Path) -> None:
    torn = copied(adapter, tmp_path / "torn")
    whole = (torn / "adapter_model.safetensors").read_bytes()
    (torn / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "adapter_model.safetensors is cut short" in refused(root, torn)
    (torn / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in refused(root, torn)
    other = copied(adapter, tmp_path / "ia3", peft_type="IA3")
    assert "LORA alone is judged" in refused(root, other)
    assert "is none of these" in refused(root, tmp_path)


def test_mistakes_in_predictions_come_all_at_once(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.jsonl"
    lines = '{"id": "x", "prediction": "1"}', '{"id": "x", "prediction": 2}', "not JSON", '{"id": [], "prediction": ""}'
    file.write_text("\n".join(lines))
    assert main(["judge", "base=tiny-random", f"arms={{g: {file}}}", "sweep=bad", *overrides(root)]) == 2
    text = capsys.readouterr().err
    for part in (
        "given twice",
        "prediction is no text",
        "line 3 is not",
        "12 ids have no prediction",
        "2 ids are none",
    ):
        assert part in text


def test_mistakes_on_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "method=lora", *overrides(root)]) == 2
    assert "method: judge sets it" in capsys.readouterr().err
    assert main(["judge", "base=nothing", "arms={base: somewhere}", *overrides(root)]) == 2
    text = capsys.readouterr().err
    assert "base=nothing: no folder, and no such model" in text
    assert "base: a method of its own has this name" in text


def test_drift_of_a_base(root: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over the base as it was, and over one whose head was turned round."""
    new = root / "new"
    shutil.copytree(root / "base", new)
    model = AutoModelForCausalLM.from_pretrained(new)
    with torch.no_grad():
        model.model.norm.weight.neg_()
    model.save_pretrained(new)
    assert judge(root, {"plain": adapter}, "base,new", "sweep=drift") == 0
    told = capsys.readouterr().out
    assert "plain, base to new, quality:" in told
    sweep = load(root / "results" / "drift")
    assert sorted(zip(sweep.arms["model"], sweep.arms["arm"], strict=True)) == [
        ("base", "base"), ("base", "plain"), ("new", "base"), ("new", "plain"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("default::FutureWarning")  # of TRL's own arguments
def test_an_adapter_of_trl(root: Path) -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed: pip install -c constraints.txt -e '.[peers]'")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"{n} + 1 = ?", "completion": str(n + 1)} for n in range(8)]
    how = SFTConfig(
        output_dir=str(root / "trl"), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", bf16=False
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=MODULES)
    trainer = SFTTrainer(str(root / "base"), how, train_dataset=Dataset.from_list(rows), peft_config=lora)
    trainer.train()
    trainer.save_model(str(root / "trl"))
    assert judge(root, {"trl": root / "trl"}, "base", "sweep=trl") == 0


def test_the_gate_takes_judged_checkpoints(judged: Path, tmp_path: Path) -> None:
    """Predictions that are the references against an adapter of random tensors, either way round."""
    plain, given = (next(judged.glob(f"{name}-*")) for name in ("plain", "given"))
    settings = ["quality=-0.01", f"to={tmp_path}"]
    assert main(["gate", str(plain), str(given), *settings]) == 0
    assert main(["gate", str(given), str(plain), *settings]) == 1
    assert "plain against given, quality: worse" in (tmp_path / "gate.md").read_text()
