"""The machine as a stage resolves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.compose import compose
from bench.worker import device


@pytest.mark.parametrize(("emulated", "expected"), [(True, torch.float32), (False, torch.bfloat16)])
def test_bf16_is_used_only_where_the_gpu_computes_it(smoke, monkeypatch, emulated: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or not emulated
    )
    (config,) = compose(smoke("hardware.device=auto", "hardware.compute_dtype=auto"), multirun=False)
    assert device.resolve(config).compute_dtype is expected


def test_processors_are_named_as_the_kernel_does(tmp_path: Path) -> None:
    assert device.ranges([0, 1, 2, 5, 8, 7]) == "0-2,5,7-8"
    assert device.ranges([]) == ""
    for number, word in enumerate(("powersave", "performance")):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(word + "\n")
    assert device.governor([0, 1, 2], tmp_path) == "performance/powersave"
    assert device.governor([0], tmp_path) == "powersave"
    assert device.governor([2], tmp_path) is None
