"""The machine as a stage resolves it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.compose import compose
from bench.mistakes import ConfigurationError
from bench.worker import device
from bench.worker.device import Device


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that lets PyTorch see one accelerator of a kind."""

    def sees(kind: str, *, bf16: bool = True) -> None:
        calls: list[str] = []
        module = SimpleNamespace(
            is_bf16_supported=lambda including_emulation: including_emulation or bf16,
            get_device_name=lambda: f"a fake {kind}",
        )
        accelerator = {
            "current_accelerator": lambda check_available=False: torch.device(kind),
            "device_count": lambda: 1,
            "synchronize": lambda: calls.append("synchronize"),
        }
        for name, answer in accelerator.items():
            monkeypatch.setattr(torch.accelerator, name, answer)
        monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        return calls

    return sees


def resolved(smoke: Any, *overrides: str) -> Device:
    (config,) = compose(smoke("hardware.device=auto", "hardware.compute_dtype=auto", *overrides), multirun=False)
    return device.resolve(config, steps=100)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize(("emulated", "expected"), [(True, torch.float32), (False, torch.bfloat16)])
def test_bf16_is_used_only_where_the_gpu_computes_it(
    smoke, fake, kind: str, emulated: bool, expected: torch.dtype
) -> None:
    fake(kind, bf16=not emulated)
    assert resolved(smoke).compute_dtype is expected


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_other_accelerators_are_taken(smoke, fake, kind: str, method: str) -> None:
    calls = fake(kind)
    found = resolved(smoke, f"method={method}")
    assert (found.type, found.attention) == (kind, "sdpa")
    found.synchronize()
    assert calls == ["synchronize"]
    if kind != "mps":
        assert device.name_of(kind) == f"a fake {kind}"


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_4_bit_needs_a_backend_of_bitsandbytes(smoke, fake, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fake(kind)
    monkeypatch.setattr("bitsandbytes.supported_torch_devices", {"cpu", "cuda"})
    assert resolved(smoke, "method=lora").type == kind
    with pytest.raises(ConfigurationError, match=rf"no backend for {kind} \(it has cpu, cuda\); leave qlora out"):
        resolved(smoke, "method=qlora")


def test_several_of_them_do_not_train_together(smoke, fake) -> None:
    fake("xpu")
    with pytest.raises(ConfigurationError, match=r"hardware.devices: several train together on cuda and cpu alone"):
        resolved(smoke, "hardware.devices=2", "hardware.strategy=ddp", "train.micro_batch=1")


def test_nothing_is_compiled_on_mps(smoke, fake) -> None:
    fake("mps")
    assert resolved(smoke, "train.compile=auto").compiled == "off: no compiler for mps"
    with pytest.raises(ConfigurationError, match="there is no compiler for mps; use off"):
        resolved(smoke, "train.compile=regional")


def test_what_is_not_there_is_refused_by_name(smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine.driver", lambda: None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    with pytest.raises(ConfigurationError, match="xpu was asked for, but none is visible; use auto or cpu"):
        resolved(smoke, "hardware.device=xpu")


@pytest.mark.parametrize(("packing", "expected"), [("true", "flash_attention_2"), ("false", "sdpa")])
def test_flash_attention_is_for_packed_rows(
    smoke, fake, monkeypatch: pytest.MonkeyPatch, packing: str, expected: str
) -> None:
    fake("cuda")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: SimpleNamespace())
    assert resolved(smoke, f"train.packing={packing}").attention == expected


def test_without_headers_nothing_is_compiled_and_the_record_says_why(smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compiler_problem", lambda kind: "no Python.h")
    assert resolved(smoke, "train.compile=auto").compiled == "off: no Python.h"
    with pytest.raises(ConfigurationError, match=r"there is no Python.h; use off, or mend it as"):
        resolved(smoke, "train.compile=regional")


def test_processors_are_named_as_the_kernel_does(tmp_path: Path) -> None:
    (only,) = sorted(os.sched_getaffinity(0))[:1]
    assert device.affinity().partition(",")[0].partition("-")[0] == str(only)
    for number, word in enumerate(("powersave", "performance")):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(word + "\n")
    assert device.governor([0, 1, 2], tmp_path) == "performance/powersave"
    assert device.governor([0], tmp_path) == "powersave"
    assert device.governor([2], tmp_path) is None
