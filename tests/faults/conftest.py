"""One finished run that all faults start from, and the fault table of docs/maintainers/faults.md."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from faults import ROOT, Place

PARALLEL_TESTS = "PYTEST_XDIST_WORKER" in os.environ
PAGE = ROOT / "docs" / "maintainers" / "faults.md"
HEAD = "| fault | how it is injected | how it ends | what survives |"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished LoRA run with its cache; copied, never changed."""
    base = tmp_path_factory.mktemp("finished")
    task_file = base / "sums.jsonl"
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(8) for b in range(5)]
    task_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = Place(base, task_file)
    assert place.execute("method=lora").status == "ok"
    return place


@pytest.fixture(scope="session")
def _at_work(request, finished, tmp_path_factory) -> Iterator[dict[tuple[ModuleType, str], Future[Any]]]:
    """The cases of all modules to be tested, two at a time: a child on a tiny model spends its time importing."""
    modules = dict.fromkeys(item.module for item in request.session.items if "cases" in item.fixturenames)
    with ThreadPoolExecutor(2) as pool:
        yield {
            (module, name): pool.submit(case, finished, tmp_path_factory.mktemp("case"))
            for module in modules
            for name, case in module.CASES.items()
        }


@pytest.fixture
def cases(request, finished, tmp_path_factory) -> Callable[[str], Any]:
    """A function from a name to what the test module's CASES[name](finished, folder) returned."""
    if PARALLEL_TESTS:  # the other worker has the other core
        return lambda name: request.module.CASES[name](finished, tmp_path_factory.mktemp("case"))
    at_work = request.getfixturevalue("_at_work")
    return lambda name: at_work[request.module, name].result()


@pytest.fixture(scope="session")
def _table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    if request.config.getoption("--update-faults") and not request.session.testsfailed and not PARALLEL_TESTS:
        before, _, rest = PAGE.read_text().partition(HEAD)
        after = "\n".join(line for line in rest.splitlines()[1:] if not line.startswith("|"))
        PAGE.write_text("\n".join([before + HEAD, "| --- | --- | --- | --- |", *rows, after]) + "\n")


@pytest.fixture
def shows(request: pytest.FixtureRequest, _table: list[str]) -> Callable[[str, str, str, str], None]:
    """A function from what a test has shown to its row in docs/maintainers/faults.md, which must say the same."""

    def show(fault: str, injected: str, end: str, survived: str) -> None:
        row = f"| {fault} | {injected} | {end} | {survived} |"
        if request.config.getoption("--update-faults"):
            _table.append(row)
        else:
            assert row in PAGE.read_text().splitlines(), "the page says otherwise; `pytest --update-faults`"

    return show
