"""Every format of data through a whole run of the tiny model: prepared, trained, tested, recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversation import DATA
from in_process import in_process

from bench.cli import main
from bench.record import Record, from_json
from bench.sweep import execute, fetching

CASES = {
    "messages.jsonl": [
        "task.loss=weights",
        "task.test_turns=all",
        "model.chat_template=TEMPLATE",
        "task.metrics=[tool_call]",
    ],
    "sharegpt.json": [],
    "alpaca.jsonl": ["task.loss=last", "train.packing=true"],
    "completion.jsonl": ["task.format=plain"],
    "text.jsonl": [],
    "columns.csv": ["task.prompt={question}", "task.target={answer}"],
}
# The tiny model's own template, with calls of tools.
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role if m.role != 'tool' else 'user' }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{# tools #}"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_of_each_format(
    name: str, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execute, "run_stage", in_process)
    monkeypatch.setattr(fetching, "run_stage", in_process)
    template = TEMPLATE.replace("'", "\\'")
    own = [text.replace("TEMPLATE", f"'{template}'") for text in CASES[name]]
    folders = [f"paths.{part}={tmp_path / part}" for part in ("results", "artifacts")]
    sizes = [f"task.{split}_examples=null" for split in ("train", "validation", "test")]
    shared = ["experiment=smoke", "method=lora", "task=data", f"task.train_file={DATA / name}", "task.max_new_tokens=8"]
    assert main([*shared, *folders, f"paths.cache={shared_cache}", *sizes, *own]) == 0
    assert f"data of data: {name}" in capsys.readouterr().out
    (path,) = (tmp_path / "results").rglob("record.json")
    record = from_json(Record, path.read_bytes())
    assert record.train is not None
    assert record.evaluate is not None
    assert record.data is not None
    assert record.data.source.startswith(f"{name} (") == (name != "columns.csv")  # what was recognized
    if name == "messages.jsonl":
        assert record.train.supervised_tokens < record.train.tokens / 2
        assert record.evaluate.examples > record.data.validation_examples  # one example an answer
    if name == "text.jsonl":
        assert record.train.supervised_tokens == record.train.tokens - record.train.examples
    assert json.loads(path.read_text())["status"] == "ok"
