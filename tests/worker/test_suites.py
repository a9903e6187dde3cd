"""The suites' items: how many, balanced, distinct, the same everywhere; and mistakes found by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.config import SuiteConfig
from bench.identity import digest
from bench.worker.suites import local, quick
from bench.worker.suites.local import check_suite
from bench.worker.suites.quick import choice_task, quick_tasks

BLIMP = Path(__file__).parents[3] / "shared" / "data" / "blimp"
CHOICE_TASKS = [task for task in quick_tasks() if task.kind == "choice"]


def test_quick_holds_at_least_six_tasks_and_800_items() -> None:
    assert len(quick_tasks()) >= 6
    assert sum(len(task.documents) for task in quick_tasks()) >= 800
    assert {task.kind for task in quick_tasks()} == {"choice", "text", "instruction"}


@pytest.mark.parametrize("task", quick_tasks(), ids=lambda task: task.name)
def test_no_item_occurs_twice(task) -> None:
    assert len({json.dumps(document, sort_keys=True) for document in task.documents}) == len(task.documents)
    asked = [d.get("prompt") or d.get("text") or (d["context"], tuple(sorted(d["choices"]))) for d in task.documents]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("task", CHOICE_TASKS, ids=lambda task: task.name)
def test_answers_stand_at_every_position_equally_often(task) -> None:
    counts = Counter(document["answer"] for document in task.documents)
    assert len(counts) == len(task.documents[0]["choices"])
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", CHOICE_TASKS, ids=lambda task: task.name)
def test_choices_are_distinct_and_equally_many(task) -> None:
    for document in task.documents:
        assert len(set(document["choices"])) == len(document["choices"]) == len(task.documents[0]["choices"])


def test_items_do_not_depend_on_the_process() -> None:
    """Hash randomization and set order must not show."""
    command = (
        "from bench.identity import digest; from bench.worker.suites.quick import quick_tasks; "
        "print(digest({task.name: task.documents for task in quick_tasks()}))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", command],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert printed == [digest({task.name: task.documents for task in quick.quick_tasks()})] * 2


def test_choice_task_by_hand() -> None:
    task = choice_task("t", [("q", " right", [" wrong", " false"])])
    assert task.documents == ({"context": "q", "choices": [" right", " wrong", " false"], "answer": 0},)


@pytest.mark.parametrize(
    ("rule", "argument", "good", "bad"),
    [
        ("has_both", "river bridge", "The bridge over the river.", "The bridges over the river."),
        ("asks", "", "Is it deep?", "It is deep."),
        ("copies", "I like the river", "i like the river!", "I like rivers"),
        ("plural", "rivers", "It is 'rivers'.", "It is river."),
        ("json_key", "river", '{"river": 1}', "river: 1"),
        ("function", "river", "def river(x):", "def rivers(x):"),
        ("greets", "Maria", "Hello, Maria!", "Hello, Mariana!"),
        ("opens", "Dear Maria", "Dear Maria,", "Hello, Dear Maria"),
        ("numbered", "", "1. Plum\n2. Pear", "Plum, pear"),
        ("yes_or_no", "", "No, it is not.", "It is not."),
    ],
)
def test_instructions_are_judged(rule: str, argument: str, good: str, bad: str) -> None:
    assert quick.followed(rule, argument, good)
    assert not quick.followed(rule, argument, bad)


def test_every_rule_has_its_share_and_its_judge() -> None:
    documents = quick.instructions().documents
    assert set(Counter(d["rule"] for d in documents).values()) == {quick.ITEMS_PER_RULE}
    for document in documents:
        assert "{" not in document["argument"]
        assert not quick.followed(document["rule"], document["argument"], "")


def test_unknown_quick_task_is_named_with_the_nearest() -> None:
    (problem,) = check_suite(SuiteConfig(name="quick", source="quick", tasks=["capitals", "contnents"]))
    assert "'contnents'" in problem
    assert "did you mean 'continents'" in problem


@pytest.mark.slow
def test_registry_knows_the_general_suite_and_names_what_it_does_not_know() -> None:
    import yaml

    file = Path(__file__).parents[2] / "conf" / "suite" / "general.yaml"
    suite = SuiteConfig(**yaml.safe_load(file.read_text()))
    assert [problem for problem in check_suite(suite) if "no task" in problem] == []
    (problem,) = check_suite(SuiteConfig(name="mine", source="lm_eval", tasks=["helaswag"]))
    assert "did you mean 'hellaswag'" in problem


def test_packages_that_a_task_needs_are_named(monkeypatch) -> None:
    monkeypatch.setattr(local, "names_known", lambda: ["ifeval", "piqa"])
    monkeypatch.setattr(local, "_IFEVAL_PACKAGES", ("json", "no_such_package"))
    (problem,) = check_suite(SuiteConfig(name="mine", source="lm_eval", tasks=["ifeval", "piqa"]))
    assert "ifeval needs no_such_package" in problem


class TestLocalFolders:
    """`suite=local`: what is wrong with a folder is said before anything is loaded."""

    @staticmethod
    def problems(folder: Path, *tasks: str) -> list[str]:
        return check_suite(SuiteConfig(name="local", source="local", path=str(folder), tasks=list(tasks)))

    def test_missing_folder(self, tmp_path: Path) -> None:
        (problem,) = self.problems(tmp_path / "absent")
        assert "no folder" in problem

    def test_empty_folder(self, tmp_path: Path) -> None:
        (problem,) = self.problems(tmp_path)
        assert "neither" in problem

    def test_yaml_without_a_name(self, tmp_path: Path) -> None:
        (tmp_path / "good.yaml").write_text("include: shared.yaml\ntask: mine\nprocess_docs: !function code.docs\n")
        (tmp_path / "shared.yaml").write_text("output_type: multiple_choice\n")
        assert self.problems(tmp_path) == []
        (tmp_path / "nameless.yaml").write_text("output_type: multiple_choice\n")
        (tmp_path / "broken.yaml").write_text("task: [\n")
        broken, nameless = self.problems(tmp_path)
        assert "broken.yaml: not valid YAML" in broken
        assert "nameless.yaml: it has no `task:`" in nameless

    def test_names_are_those_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "one.yaml").write_text("task: one_task\ntag: [both]\n")
        assert self.problems(tmp_path, "one_task", "both") == []
        (problem,) = self.problems(tmp_path, "one_tsk")
        assert "did you mean 'one_task'" in problem

    def test_pairs_name_file_and_line(self, tmp_path: Path) -> None:
        file = tmp_path / "verbs.jsonl"
        file.write_text('{"sentence_good": "He runs.", "sentence_bad": "He run."}\n{"sentence_good": "x"}\n')
        (problem,) = self.problems(tmp_path)
        assert "verbs.jsonl:2" in problem

    def test_pairs_as_people_write_them(self, tmp_path: Path) -> None:
        row = '{"sentence_good": "He\u2028runs.", "sentence_bad": "He run."}\r\n'
        file = tmp_path / "verbs.jsonl"
        file.write_bytes(b"\xef\xbb\xbf" + row.encode())
        assert self.problems(tmp_path) == []
        assert "He\u2028runs." in local.minimal_pair_tasks(tmp_path)[0].documents[0]["choices"]
        for content, words in {
            '{"sentence_good": "Él corre.", "sentence_bad": "x"}'.encode(
                "latin-1"
            ): "verbs.jsonl:1: byte 0xc9 is not UTF-8",
            row.encode("utf-16"): "verbs.jsonl:1: the file is in UTF-16",
            b'{"sentence_good": "x", "sentence_bad": "x"}': "verbs.jsonl:1: both sentences are the same",
        }.items():
            file.write_bytes(content)
            (problem,) = self.problems(tmp_path)
            assert words in problem
        (tmp_path / "task.yaml").write_bytes("task: élan\n".encode("latin-1"))
        (problem,) = self.problems(tmp_path)
        assert "task.yaml: 1: byte 0xe9 is not UTF-8" in problem

    def test_pairs_alternate_positions(self, tmp_path: Path) -> None:
        row = '{"sentence_good": "He runs.", "sentence_bad": "He run."}\n'
        (tmp_path / "verbs.jsonl").write_text(row * 2)
        (task,) = local.minimal_pair_tasks(tmp_path)
        assert [(d["choices"][d["answer"]], d["answer"]) for d in task.documents] == [("He runs.", 0), ("He runs.", 1)]

    @pytest.mark.skipif(not BLIMP.is_dir(), reason="needs the BLiMP files in ../shared/data/blimp")
    def test_real_pairs(self) -> None:
        assert self.problems(BLIMP) == []
        tasks = local.minimal_pair_tasks(BLIMP)
        assert len(tasks) == len(list(BLIMP.glob("*.jsonl")))
        assert all(len(task.documents) == 1000 for task in tasks)
