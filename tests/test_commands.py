"""Every command that a page tells a person to give: run here in small, by another test, or by none, with the reason.

Here it runs as `python -m` would run it, in this process and in a folder of its own, so that `results/default` and
`train.jsonl` are what the page means by them. A run's stages are in this process too (in_process.py), and what measures
the machine is cut short: nothing here looks at a number.
"""

from __future__ import annotations

import ast
import functools
import gc
import glob
import importlib
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import vl_convert
from command_table import BUDGET, DATA, FEW, TABLE, TINY, Elsewhere, Here, No
from commands import LIST, ROOT, commands, commands_of
from hydra.plugins.sweeper import Sweeper
from in_process import in_process

from bench import cli
from bench.compose import compose
from bench.config import RunConfig
from bench.identity import run_folder, sweep_folder
from bench.record import Status
from bench.report import build
from bench.sweep import execute, fetching
from bench.sweep.execute import read_record
from bench.worker import models
from bench.worker.instruments import memory as meters
from bench.worker.instruments import tokens as flops
from bench.worker.sources import docstrings

_bundle = functools.cache(vl_convert.javascript_bundle)  # of Vega: a second, and always the same
HERE = [text for text, way in TABLE.items() if isinstance(way, Here)]
PAGE = """# Every command of these pages

How each is executed. *Here*: by `tests/test_commands.py`, as it stands, or with the settings that are named, in the
place of its own. A test's name: by that test, on small data. Else: by no test, and why. Commands of
[evidence.md](evidence.md) were given by hand. This page is written by the tests (`--update-commands`).

`TINY` is `model=tiny-random` with `BUDGET`, `DATA` and `FEW`:

    BUDGET  {budget}
    DATA    {data}
    FEW     {few}

| command | page | executed |
| --- | --- | --- |
"""


def test_every_command_is_claimed() -> None:
    lacking = [f"{command.page}: {command.text}" for command in commands() if command.text not in TABLE]
    assert not lacking, "add an entry to TABLE in tests/command_table.py for\n" + "\n".join(lacking)


def test_every_entry_is_a_command() -> None:
    told = {command.text for command in commands()}
    assert not (gone := TABLE.keys() - told), f"no page tells these any more; take them out of TABLE: {sorted(gone)}"


def test_tests_that_are_named_are_there() -> None:
    for way in TABLE.values():
        if isinstance(way, Elsewhere):
            file, _, name = way.test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, way.test


def test_commands_are_found_in_blocks_and_text() -> None:
    page = "Give `make\ntest`, or `ray`:\n\n    python -m bench \\\n        seed=0   # one\n    not a command\n\n"
    assert list(commands_of(page + "```\nX=1 pip install .\n```\n")) == [
        "X=1 pip install .",
        "python -m bench seed=0",
        "make test",
    ]


def test_the_list(request: pytest.FixtureRequest) -> None:
    pages: dict[str, list[str]] = {}
    for command in commands():
        pages.setdefault(command.text, []).append(Path(command.page).name)
    rows = [f"| `{text}` | {', '.join(pages.get(text, []))} | {_told(way)} |" for text, way in TABLE.items()]
    written = PAGE.format(budget=BUDGET, data=DATA, few=FEW) + "\n".join(rows) + "\n"
    if request.config.getoption("--update-commands"):
        LIST.write_text(written)
    assert LIST.read_text() == written, "docs/commands.md says otherwise; `pytest --update-commands`"


def _told(way: Here | Elsewhere | No) -> str:
    match way:
        case Here(small):
            for name, settings in (("TINY", TINY), ("BUDGET", BUDGET), ("DATA", DATA), ("FEW", FEW)):
                small = small.replace(settings, name)
            return f"here: `{small}`" if small else "here"
        case Elsewhere(test):
            return f"`tests/{test}`"
        case No(why):
            return why


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: with somebody's data and model."""
    made = tmp_path_factory.mktemp("commands")
    rows = [
        json.dumps({"question": f"{a} + {b} = ?", "answer": str(a + b)}) + "\n" for a in range(60) for b in range(40)
    ]
    (made / "train.jsonl").write_text("".join(rows[:2300]))
    (made / "test.jsonl").write_text("".join(rows[2300:]))
    (tiny,) = compose(["model=tiny-random", f"paths.cache={made / 'cache'}"], multirun=False)
    shutil.copytree(models.locate(tiny.model, made / "cache"), made / "path" / "to" / "model")
    return made


@pytest.fixture(scope="module")
def given() -> Iterator[set[str]]:
    """The commands that were run in `folder`."""
    importlib.import_module("transformers.trainer")
    gc.freeze()  # each training collects garbage, and what imports made is most of what there is to look at
    yield set()
    gc.unfreeze()


@pytest.fixture
def give(folder: Path, given: set[str], monkeypatch, capfd) -> Callable[[str], str]:
    """A function that runs a command of the table, after what it needs, and returns what it printed."""
    for module in (execute, fetching):
        monkeypatch.setattr(module, "run_stage", in_process)
    peak = functools.partial(flops.matmul_peak_flops_per_second, seconds=0.01)
    monkeypatch.setattr(flops, "matmul_peak_flops_per_second", peak)
    monkeypatch.setattr(meters, "_collect", lambda: None)
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)  # `compose` has just done it
    monkeypatch.setattr(docstrings, "PACKAGES", {"networkx": "networkx"})
    monkeypatch.setattr(docstrings, "FILE_BYTES_MAXIMUM", 4_000)
    monkeypatch.setattr(vl_convert, "javascript_bundle", _bundle)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(folder)

    def run(text: str) -> str:
        way = TABLE.get(text, Here(TINY))
        assert isinstance(way, Here)
        for earlier in way.after:
            if earlier not in given:
                run(earlier)
        module, arguments = as_python_gives_it(text, way.small)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capfd.readouterr()
        asked: list[RunConfig] = []
        with monkeypatch.context() as patch:
            if module == "bench":  # plots take longer than runs; `bench.report` draws them
                patch.setattr(build, "draw", lambda *_, **__: [])
            patch.setattr(cli, "compose", lambda *given: asked.extend(compose(*given)) or asked)
            assert exit_code(module) == 0, capfd.readouterr()
        given.add(text)
        assert_complete(asked, way)
        return capfd.readouterr().out

    return run


def as_python_gives_it(text: str, small: str) -> tuple[str, list[str]]:
    """The module and arguments of `python -m`, with smaller settings in the place of those of the same name."""
    words = shlex.split(text)
    if words[0] == "make":
        asked = ["make", "--dry-run", "--old-file=.venv/ready", *words[1:]]
        clean = {"PATH": os.environ["PATH"]}  # `make test` hands down its flags and variables
        done = subprocess.run(asked, cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
        words = shlex.split(done.stdout)
    module, arguments = words[2], words[3:]
    arguments = [name for word in arguments for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    instead = shlex.split(small)
    names = {word.partition("=")[0] for word in instead}
    return module, [word for word in arguments if word.partition("=")[0] not in names] + instead


def exit_code(module: str) -> int:
    """Run a module as `python -m` does."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # other tests import it
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def assert_complete(configs: list[RunConfig], way: Here) -> None:
    """Every run that was asked for is ok and reported; smaller settings left every point of an experiment there."""
    records = [read_record(run_folder(config)) for config in configs]
    assert [record.status for record in records if record] == [Status.OK] * (way.runs or len(configs))
    assert all((sweep_folder(config) / "report.html").exists() for config in configs)


@pytest.mark.slow
@pytest.mark.parametrize("text", HERE)
def test_a_command_does_what_its_page_says(text: str, give: Callable[[str], str], folder: Path) -> None:
    way = TABLE[text]
    assert isinstance(way, Here)
    assert way.says in give(text)
    assert not [pattern for pattern in way.makes if not list(folder.glob(pattern))]
