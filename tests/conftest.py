"""Shared fixtures: a composed smoke run in a folder of its own."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

from bench.compose import compose
from bench.config import RunConfig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="store the loss curves as they are now")
    parser.addoption("--update-faults", action="store_true", help="write the faults page's table from tests/faults")


LONGEST = ("test_embedded", "test_controls", "test_several", "test_devices", "test_fetching")  # single long tests


def pytest_configure(config: pytest.Config) -> None:
    """Give every parallel worker cores of its own: threads of two tests on the same cores slow both down manyfold.

    Collecting imports millions of objects that stay; garbage is looked for when they are there, and not among them.
    """
    gc.disable()
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count] or cores)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests run by `pytest -m gpu` on a GPU box, elsewhere they say why not. The longest tests come first."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))
    marked = [item for item in items if item.get_closest_marker("gpu")]  # keywords hold folder names too
    if marked:
        import torch

        for item in marked if not torch.cuda.is_available() else []:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_works() -> None:
    """Programs started in the background inherit an ignored SIGINT; the tests of Ctrl-C need the usual one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared models and data, made once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Forty short questions and answers."""
    import json

    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(8) for b in range(5)]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


@pytest.fixture
def smoke(tmp_path: Path, task_file: Path, shared_cache: Path):
    """Returns a function from extra overrides to the overrides of a run on a tiny random model."""

    def overrides(*extra: str) -> list[str]:
        return [
            "experiment=smoke",
            "task=jsonl",
            f"task.train_file={task_file}",
            "task.prompt={question}",
            "task.target={answer}",
            "task.metrics=[numeric,exact_match]",
            "task.max_new_tokens=8",
            "task.validation_examples=4",
            "task.test_examples=4",
            f"paths.results={tmp_path / 'results'}",
            f"paths.artifacts={tmp_path / 'artifacts'}",
            f"paths.cache={shared_cache}",
            *extra,
        ]

    return overrides


@pytest.fixture
def smoke_config(smoke) -> RunConfig:
    """One LoRA run on the tiny model."""
    (config,) = compose(smoke("method=lora"), multirun=False)
    return config
