"""What tests of whole sweeps share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from in_process import in_process

from bench.sweep import execute, exporting, fetching


@pytest.fixture(scope="module")
def without_children() -> Iterator[None]:
    """Every stage of a module's tests runs in this process."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (execute, exporting, fetching):
            patched.setattr(module, "run_stage", in_process)
        yield
