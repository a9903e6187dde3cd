"""The probe of a model's speed: kept once, by device and task, with the numbers that a sweep plans by."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from in_process import in_process
from transformers import AutoModelForCausalLM

from bench.compose import compose
from bench.machine import device_name
from bench.planner.forecast import forecast
from bench.planner.time import probed, speed_path
from bench.sweep import fetching
from bench.worker import device, models, prepare
from bench.worker.suites.quick import MAX_NEW_TOKENS


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "run_stage", in_process)


def test_preparing_probes_once(here, smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = compose(smoke("method=lora", f"paths.cache={tmp_path / 'cache'}"), multirun=False)
    assert probed(config, device_name("cpu")) is None
    fetching.prepare(config)
    speed = probed(config, device_name("cpu"))
    assert speed is not None
    assert min(speed.load_seconds, speed.forward_seconds_per_token, speed.answers_seconds) > 0
    assert speed.answers == 4  # the whole test split
    assert speed_path(config, "cuda: another") != speed_path(config, str(device_name("cpu")))
    monkeypatch.setattr(prepare, "probe", None)  # would fail
    fetching.prepare(config)


def test_a_suite_is_part_of_the_expectation(here, smoke, tmp_path: Path) -> None:
    own = ["method=lora", "suite=quick", "suite.tasks=[instructions]", "suite.items_per_task=3"]
    (config,) = compose(smoke(*own, f"paths.cache={tmp_path / 'cache'}"), multirun=False)
    fetching.prepare(config)
    speed = probed(config, device_name("cpu"))
    assert speed is not None
    a_token = speed.answers_seconds / (speed.answers * config.task.max_new_tokens)
    assert speed.suite_seconds is not None
    assert speed.suite_seconds > 3 * MAX_NEW_TOKENS * a_token  # and the divergence
    assert speed.suite_items == 3
    expected = forecast(config, None, device_name("cpu"))
    assert (expected.seconds["suite"], expected.suite_items) == (speed.suite_seconds, 3)
    (other,) = compose(smoke(*own, f"paths.cache={tmp_path / 'cache'}", "suite.tasks=[prose]"), multirun=False)
    assert probed(other, device_name("cpu")) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, OSError])
def test_a_probe_that_fails_stops_nothing(here, smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(prepare, "probe", failing)
    (config,) = compose(smoke("method=lora", f"paths.cache={tmp_path / 'cache'}"), multirun=False)
    fetching.prepare(config)
    assert probed(config, device_name("cpu")) is None


@pytest.mark.parametrize(("new_tokens", "steps"), [(8, 6), (2, 2), (1, 1)])
def test_seconds_of_answers_by_hand(smoke, monkeypatch: pytest.MonkeyPatch, new_tokens: int, steps: int) -> None:
    """A clock that ticks once a look: one second for the first token and one for each other; six steps."""
    (config,) = compose(smoke(), multirun=False)
    model = AutoModelForCausalLM.from_pretrained(models.locate(config.model, Path(config.paths.cache))).eval()
    ticks, looks = count(), []

    def clock() -> float:
        looks.append(next(ticks))
        return float(looks[-1])

    monkeypatch.setattr(prepare.time, "perf_counter", clock)
    monkeypatch.setattr(prepare, "_SECONDS", 4.5)
    seconds = prepare._answers_seconds(model, [[1, 2, 3], [4]], new_tokens, 0, device.resolve(config))
    assert seconds == float(new_tokens)
    assert len(looks) == 1 + steps


def test_no_memory_is_risked_for_it(here, smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "probe", lambda *_: pytest.fail("probed"))
    monkeypatch.setattr(prepare.psutil, "virtual_memory", lambda: SimpleNamespace(available=1, total=1))
    (config,) = compose(
        smoke("method=lora", f"paths.cache={tmp_path / 'cache'}", "model.parameters=90000"), multirun=False
    )
    fetching.prepare(config)
    assert not (tmp_path / "cache" / "speed").exists()
