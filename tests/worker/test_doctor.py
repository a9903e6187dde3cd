"""The doctor's trials, on this CPU and with broken things in place."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from in_process import in_process

from bench.cli import main
from bench.compose import compose
from bench.config import RunConfig
from bench.machine import Driver, Finding
from bench.sweep import fetching
from bench.worker import device, doctor
from bench.worker.doctor import TRIALS, Trial, tried


@pytest.fixture
def config(smoke) -> RunConfig:
    return compose(smoke(), multirun=False)[0]


def trial(name: str, config: RunConfig, kind: str = "cpu") -> Finding:
    return tried(next(trial for trial in TRIALS if trial.name == name), config, kind)


@pytest.mark.parametrize("name", ["device", "memory", "attention", "4-bit", "energy", "hub"])
def test_a_cpu_is_fine(config: RunConfig, name: str) -> None:
    found = trial(name, config)
    assert found.state == "fine", found


def test_attention_says_which_kernels_ran(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial("attention", config).found == "works: flash, math"
    real = doctor.scaled_dot_product_attention

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        if not torch.backends.cuda.math_sdp_enabled():
            raise RuntimeError("No available kernel")
        return real(*arguments, **options)

    monkeypatch.setattr(doctor, "scaled_dot_product_attention", broken)
    found = trial("attention", config)
    assert (found.state, found.found) == ("slower", "works: math")


def test_4_bit_products_that_are_wrong_are_broken(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    assert "off by 0." in trial("4-bit", config).found
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda given, packed, quant_state: given[:, :128] * 3)
    found = trial("4-bit", config)
    assert found.state == "broken"
    assert "BNB_CUDA_VERSION" in found.mend


def test_a_library_that_does_not_load_is_a_finding(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = trial("4-bit", config)
    assert (found.state, found.found.partition(":")[0]) == ("broken", "ModuleNotFoundError")


def test_without_a_compiler_nothing_is_compiled(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "compiler_problem", lambda kind: "no Python.h")
    assert trial("compile", config).found == "not tried: no Python.h"


@pytest.mark.slow
def test_a_small_layer_is_compiled(config: RunConfig) -> None:
    found = trial("compile", config)
    assert found.state == "fine", found


def test_memory_that_others_hold_is_told(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_and_total_bytes", lambda kind: (20 << 30, 80 << 30))
    monkeypatch.setattr(doctor, "open_nvml", lambda: SimpleNamespace(process_ids=lambda: {1, 2, 3}))
    monkeypatch.setattr(doctor.os, "getpid", lambda: 3)
    found = trial("memory", config, "cuda")
    assert (found.state, found.found) == ("slower", "20.0 of 80.0 GiB free; other processes on the device: 2")


class FakeHub:
    """A hub with a gated model."""

    def auth_check(self, name: str, repo_type: str) -> None:
        response = SimpleNamespace(headers={}, request=None, status_code=403)
        if name == "meta-llama/Llama-3.1-8B-Instruct":
            raise GatedRepoError("gated", response=response)
        if name == "Qwen/Qwen3-8B":
            raise RepositoryNotFoundError("none", response=response)
        raise ConnectionError("no route to host")


@pytest.mark.parametrize(
    ("model", "words", "mend"),
    [
        ("llama-3.1-8b", "logged out; meta-llama/Llama-3.1-8B-Instruct is gated", "hf auth login"),
        ("qwen3-8b", "no model Qwen/Qwen3-8B that this login may read", "hf auth login"),
        ("mistral-7b", "ConnectionError: no route to host", "make fetch"),
    ],
)
def test_logged_out_of_the_hub(smoke, monkeypatch: pytest.MonkeyPatch, model: str, words: str, mend: str) -> None:
    monkeypatch.setattr(doctor, "get_token", lambda: None)
    monkeypatch.setattr(doctor, "HfApi", FakeHub)
    (config,) = compose(smoke(f"model={model}"), multirun=False)
    found = trial("hub", config)
    assert found.state == "broken"
    assert words in found.found
    assert mend in found.mend


def test_a_run_without_the_hub_asks_it_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "get_token", lambda: "hf_x")
    monkeypatch.setattr(doctor, "HfApi", lambda: pytest.fail("it was asked"))
    assert trial("hub", config).found == "logged in; these runs need no hub"


# --- the command ---


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage in this process, with two trials."""
    monkeypatch.setattr(fetching, "run_stage", in_process)
    working = Trial("device", lambda config, kind: Finding("device", "fine", kind), "broken", "")
    monkeypatch.setattr(doctor, "TRIALS", (working, next(trial for trial in TRIALS if trial.name == "bf16")))


def test_one_screen_and_exit_code_0(here: None, smoke, capfd) -> None:
    assert main(["doctor", *smoke()]) == 0
    lines = capfd.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("fine", "slower", "broken"))]
    assert names == ["driver", "wheel", "compiler", "cores", "disk", "device", "bf16"]


def test_something_broken_gives_exit_code_1_and_its_mend(here: None, smoke, capfd, monkeypatch) -> None:
    monkeypatch.setattr("bench.machine.driver", lambda: Driver("535.54", (12, 2), ["NVIDIA A100"]))
    monkeypatch.setattr("bench.machine.wheel", lambda: ("2.13.0+cpu", "CPUs", None))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert main(["doctor", *smoke("hardware.device=auto"), "--json"]) == 1
    out = capfd.readouterr().out
    found = {finding["name"]: finding for finding in json.loads(out[out.index("[\n") :])}
    assert found["driver"]["state"] == "broken"
    assert "--index-url" in found["driver"]["mend"]


def test_a_full_disk_gives_exit_code_1(here: None, smoke, capfd, monkeypatch) -> None:
    monkeypatch.setattr("bench.planner.disk.free_bytes", lambda folder: 1 << 20)
    assert main(["doctor", *smoke("model.parameters=1000000000", "method=full")]) == 1
    assert "broken  disk" in capfd.readouterr().out


def test_a_gpu_that_pytorch_does_not_see_stops_a_run(smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.mistakes import ConfigurationError

    monkeypatch.setattr("bench.machine.driver", lambda: Driver("535.54", (12, 2), ["NVIDIA A100"]))
    monkeypatch.setattr("bench.machine.wheel", lambda: ("2.13.0+cu130", "CUDA", "13.0"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (config,) = compose(smoke("hardware.device=auto"), multirun=False)
    with pytest.raises(ConfigurationError, match=r"NVML sees NVIDIA A100 .* --index-url .* hardware.device=cpu"):
        device.resolve(config)
    (config,) = compose(smoke("hardware.device=cpu"), multirun=False)
    assert device.resolve(config).type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (config,) = compose(smoke("hardware.device=auto"), multirun=False)
    assert device.resolve(config).type == "cpu"
