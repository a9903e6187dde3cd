"""What tests of whole sweeps share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from in_process import in_process

from bench.sweep import execute, exporting, fetching

PARENTS = (execute, exporting, fetching)  # modules that start children


@pytest.fixture(scope="module")
def without_children() -> Iterator[None]:
    """Every stage of a module's tests runs in this process."""
    with pytest.MonkeyPatch.context() as patched:
        for module in PARENTS:
            patched.setattr(module, "run_stage", in_process)
        yield


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of one test's own commands runs in this process; a command in a process of its own has children."""
    for module in PARENTS:
        monkeypatch.setattr(module, "run_stage", in_process)
