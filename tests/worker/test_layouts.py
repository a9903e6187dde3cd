"""Files as people have them: recognized by their columns, or refused with file, line and what to do."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from conversation import DATA
from test_chat import in_marks, tokenizer_of

from bench.config import TaskConfig
from bench.metrics import tool_call, tool_calls
from bench.mistakes import ConfigurationError
from bench.worker.chat import render_learned
from bench.worker.sources import Loaded, files
from bench.worker.sources.layouts import Row, fill

FORMATS = {
    "messages.jsonl": "messages: of 10, 10 with several answers, 5 with tools, 10 with weights",
    "sharegpt.json": "ShareGPT conversations: of 10, 10 with several answers",
    "alpaca.jsonl": "Alpaca instructions: of 10, 4 with several answers",
    "completion.jsonl": "prompt and completion",
    "text.jsonl": "raw texts",
}


def task(**settings: Any) -> TaskConfig:
    return TaskConfig(name="mine", source="files", **{"prompt": None, "target": None, **settings})


def loaded(path: Path, **settings: Any) -> Loaded:
    return files.load(task(train_file=str(path), **settings))


def every(found: Loaded) -> list[Any]:
    return sorted((e.prompt, e.target, e.turns, e.tools) for examples in found.splits.values() for e in examples)


def problems_of(path: Path, **settings: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(path, **settings)
    return caught.value.problems


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_the_columns_tell_the_layout(name: str) -> None:
    assert loaded(DATA / name).source == f"{name} ({FORMATS[name]})"


def test_every_layout_reads_the_same_conversation() -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    spoken = [{"role": role, "content": text} for role, text in turns]
    sharegpt = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns[1:]]
    records = [
        {"messages": spoken},
        {"messages": json.dumps(spoken)},  # a cell of a CSV file
        {"messages": [{"role": r, "content": [{"type": "text", "text": t}], "tool_calls": None} for r, t in turns]},
        {"conversations": sharegpt, "system": "s", "tools": ""},
        {"instruction": "r", "input": "", "output": "b", "system": "s", "history": [["q", "a"]]},
    ]
    read = [fill([Row("f:1", record)], task()) for record in records]
    assert [problems for _, problems in read] == [[]] * 5
    assert {json.dumps(found[0].turns) for found, _ in read} == {json.dumps(spoken)}
    split, _ = fill([Row("f:1", {"prompt": spoken[:4], "completion": spoken[4:]})], task())
    assert [turn.get("given") for turn in split[0].turns] == [None, None, True, None, None]  # learned: the completion
    # One question and one answer are the same example in any layout.
    alone = [{"messages": spoken[1:3]}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}]
    read = [fill([Row("f:1", record)], task()) for record in alone]
    read.append(fill([Row("f:1", {"x": "q", "y": "a"})], task(prompt="{x}", target="{y}")))
    assert {(e.prompt, e.target, e.group, e.turns) for found, _ in read for e in found} == {("q", "a", "q", ())}


def test_calls_of_both_worlds_are_one() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    openai = {"role": "assistant", "content": None, "tool_calls": [{"function": {**call, "arguments": '{"x": 1}'}}]}
    records = [
        {"messages": [{"role": "user", "content": "q"}, openai]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(call)}]},
    ]
    for record in records:
        (found,), problems = fill([Row("f:1", record)], task())
        assert problems == []
        assert [c["function"] for c in found.turns[-1]["tool_calls"]] == [call]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": "oops"}, "column 'messages' holds 'oops', which is not JSON"),
        ({"messages": [{"role": "assistent", "content": "a"}]}, "is from 'assistent' (did you mean 'assistant'?)"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no message of the assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the first message is the assistant's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of the kind image_url"),
        ({"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "a"}]}, "surrogate"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "the weight 0.5; allowed: 0 or 1"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "is no call"),
        ({"prompt": "q", "completion": None}, "column 'completion' is null"),
        ({"instruction": "q", "output": 4}, "column 'output' holds a int (4)"),
        ({"instruction": "q", "output": "a", "history": ["q"]}, "write [question, answer] pairs"),
        ({"text": " "}, "the target is empty"),
    ],
)
def test_records_that_cannot_be_read_are_named(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    (problem,) = problems_of(written(tmp_path / "d.jsonl", record))
    assert problem.startswith("d.jsonl:1: ")
    assert words in problem


def test_columns_of_no_layout_ask_for_templates(tmp_path: Path) -> None:
    for record in ({"question": "q", "answer": "a"}, {"text": "q", "label": "a"}):
        (problem,) = problems_of(written(tmp_path / "d.jsonl", record))
        assert problem.startswith("task.prompt, task.target: give templates")
        assert f"columns there: {', '.join(sorted(record))}" in problem
    mixed = written(tmp_path / "m.jsonl", {"messages": []}, {"text": "a"})
    assert problems_of(mixed)[1] == "m.jsonl:2: no column 'messages'; columns there: text"
    (problem,) = problems_of(DATA / "sharegpt.json", format="plain")[:1]
    assert "needs a chat template" in problem


def shown_block() -> str:
    """One example of each file in tests/data, by Qwen3's style of template: what carries loss between « and »."""
    tokenizer, lines = tokenizer_of("qwen3"), []
    for name in FORMATS:
        rows, _ = files.read_records(files.Source(DATA / name, name))
        (example,), _ = fill(rows[1:2], task())
        text = in_marks(tokenizer, render_learned(tokenizer, task(loss="all"), example))
        lines += [f"{name}:", *(f"    {line}" for line in text.split("\n")), ""]
    return "\n".join(f"    {line}".rstrip() for line in lines).rstrip() + "\n"


def test_the_page_shows_what_is_learned_of_each_format() -> None:
    assert shown_block() in (DATA.parents[1] / "docs" / "data.md").read_text()


# --- Files ---


@pytest.mark.parametrize("kind", ["JSONL", "json.gz", "csv", "csv.GZ", "parquet", "parquet.gz", "saved"])
def test_every_kind_of_file_holds_the_same_conversations(tmp_path: Path, kind: str) -> None:
    records = [json.loads(line) for line in (DATA / "messages.jsonl").read_text().splitlines()]
    records = [{"tools": None, **record} for record in records]  # Arrow takes the names of the first, ...
    texts = [{name: json.dumps(record.get(name)) for name in ("messages", "tools")} for record in records]
    path = tmp_path / f"data.{kind}"
    for message in (message for record in records for message in record["messages"]):  # ... and one type a column
        if isinstance(message["content"], list):
            message["content"] = message["content"][0]["text"]
    data = datasets.Dataset.from_list(texts if kind.lower().startswith("csv") else records)
    if kind == "JSONL":  # as Windows writes it
        path.write_bytes(b"\xef\xbb\xbf" + (DATA / "messages.jsonl").read_bytes().replace(b"\n", b"\r\n"))
    elif kind == "saved":
        datasets.DatasetDict({"train": data}).save_to_disk(str(path))
    else:
        whole = tmp_path / f"data.{kind.split('.')[0]}"
        if kind == "json.gz":
            whole.write_text(json.dumps(records))
        else:
            data.to_csv(whole) if kind.lower().startswith("csv") else data.to_parquet(whole)
        if "." in kind:
            path.write_bytes(gzip.compress(whole.read_bytes()))
    assert every(loaded(path)) == every(loaded(DATA / "messages.jsonl"))


def test_a_folder_holds_splits_by_their_names(tmp_path: Path) -> None:
    lines = (DATA / "messages.jsonl").read_text().splitlines(keepends=True)
    for name, part in {
        "data/train-00000.jsonl": 0,
        "data/train-00001.jsonl": 1,
        "valid/x.jsonl": 2,
        "Test.jsonl": 3,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(lines[2 * part : 2 * part + 2]))
    (tmp_path / "README.md").write_text("About these data.")
    found = loaded(tmp_path)
    assert {split: sorted(e.example_id for e in examples) for split, examples in found.splits.items()} == {
        "train": [f"data/train-0000{n}.jsonl:{line}" for n in (0, 1) for line in (1, 2)],
        "validation": ["valid/x.jsonl:1", "valid/x.jsonl:2"],
        "test": ["Test.jsonl:1", "Test.jsonl:2"],
    }
    shutil.copy(DATA / "sharegpt.json", tmp_path / "other.json")
    given = loaded(tmp_path, test_file=str(tmp_path / "other.json"))  # a file given takes the place of the folder's
    assert len(given.splits["test"]) == 10
    (tmp_path / "empty").mkdir()
    assert "holds no data files; allowed: .jsonl" in problems_of(tmp_path / "empty")[0]


def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    def problem(name: str, content: bytes, **templates: str) -> str:
        (tmp_path / name).write_bytes(content)
        (found,) = problems_of(tmp_path / name, **templates)
        return found.removeprefix(f"{tmp_path}/")

    asked = {"prompt": "{q}", "target": "{a}"}
    assert problem("a.jsonl", b'{"q": ' + b"9" * 5000 + b"}", **asked).startswith(
        "a.jsonl:1: a number of more than 4300 digits; write it as a text"
    )
    assert problem("b.jsonl", b'\n{"q": ' + b"[" * 100_000, **asked).startswith("b.jsonl:2: nested too deeply")
    latin = "".join(f'{{"q": "Où est la forêt numéro {n} ?", "a": "Là-bas, près du château"}}\n' for n in range(20))
    assert "b.jsonl" not in problem("c.jsonl", latin.encode("cp1252"), **asked)
    assert problem("c.jsonl", latin.encode("cp1252"), **asked).startswith(
        "c.jsonl:1: byte 0xf9 is not UTF-8 (it looks like cp125"
    )
    assert problem("d.json", latin.encode("utf-16"), **asked).startswith("d.json:1: the file is in UTF-16, not UTF-8")
    assert problem("e.jsonl.gz", gzip.compress(latin.encode())[:-20], **asked).startswith(
        "e.jsonl.gz: not a whole gzip"
    )
    assert problem("f.parquet", b"PAR1 and no more", **asked).startswith("f.parquet: not Parquet")
    (hub,) = problems_of(Path("HuggingFaceH4/ultrachat_200k"))
    assert "task.source=hub task.hub_dataset=HuggingFaceH4/ultrachat_200k" in hub


def test_large_cells_are_read_and_empty_ones_named(tmp_path: Path) -> None:
    rows = [f"{'long ' * 40_000}{n},yes" for n in range(20)]
    (tmp_path / "d.csv").write_text("q,a\n" + "\n".join(rows) + "\n")
    examples = loaded(tmp_path / "d.csv", prompt="{q}", target="{a}").splits["train"]
    assert len(examples[0].prompt) > 131_072
    data = datasets.Dataset.from_list([{"q": float("nan"), "a": "y"}, {"q": 1.0, "a": "y"}])
    data.to_parquet(tmp_path / "n.parquet")
    (problem,) = problems_of(tmp_path / "n.parquet", prompt="{q}", target="{a}")
    assert problem == "n.parquet:1: column 'q' is NaN, an empty cell; give it a text, or leave the record out"


def test_duplicates_in_training_are_dropped_whether_or_not_splits_are_given(tmp_path: Path) -> None:
    twice = (DATA / "messages.jsonl").read_text() * 2
    (tmp_path / "train.jsonl").write_text(twice)
    given = loaded(
        tmp_path / "train.jsonl", test_file=str(DATA / "sharegpt.json"), validation_file=str(DATA / "alpaca.jsonl")
    )
    assert given.dropped == {"train: duplicate": 10}
    assert len(given.splits["train"]) == 10


# --- The metric of calls ---


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"x": 1, "y": [2]}}\n</tool_call>',
        'Let me see {it}. [{"arguments": {"y": [2], "x": 1.0}, "name": "f", "id": "call00001"}]',
        '{"name": "f", "parameters": {"x": 1, "y": [2]}}',
        '{"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": [2]}}}',
    ],
)
def test_calls_are_compared_as_json(text: str) -> None:
    assert tool_calls(text) == [{"name": "f", "arguments": {"x": 1, "y": [2]}}]
    reference = '{"name": "f", "arguments": {"x": 1, "y": [2]}}'
    assert tool_call(text, reference) == 1
    assert tool_call(text, reference + reference) == 0
    assert tool_call(text.replace("1", "3"), reference) == 0
    assert tool_call(text, "It is sunny.") == 0
    assert tool_call("It rains.", "It is sunny.") == 1  # no call, as it should be
