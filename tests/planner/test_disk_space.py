"""The disk that runs need: each large thing once, without what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.compose import compose
from bench.planner import disk
from bench.planner.disk import GIB

PARAMETERS = 8_030_261_248
MODEL = 2 * PARAMETERS / GIB  # 15.0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def needs(tmp_path: Path, *overrides: str) -> dict[str, float]:
    """GiB by what needs them."""
    paths = [f"paths.{name}={tmp_path / name}" for name in ("results", "artifacts", "cache")]
    found: dict[str, float] = {}
    for need in disk.needed(compose(["model=llama-3.1-8b", *paths, *overrides], multirun=True)):
        found[need.what] = found.get(need.what, 0) + need.size_bytes / GIB
    return found


def test_weights_of_all_seeds_the_model_and_the_4_bit_base_add_up(hub: Path, tmp_path: Path) -> None:
    found = needs(tmp_path, "method=base,full,lora,qlora", "seed=0,1,2")
    adapters = 3 * 4 * 41_943_040 / GIB  # rank 16 on all linear layers
    assert found == pytest.approx(
        {
            "the model llama-3.1-8b": MODEL,
            "llama-3.1-8b in nf4": 0.7 * PARAMETERS / GIB,
            "weights of full": 3 * MODEL,
            "weights of lora": adapters,
            "weights of qlora": adapters,
        }
    )


def test_what_is_there_is_not_counted(hub: Path, tmp_path: Path) -> None:
    blobs = hub / "models--meta-llama--Llama-3.1-8B-Instruct" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "a").open("wb") as file:
        file.truncate(10 * GIB)  # a sparse file
    assert needs(tmp_path, "method=base")["the model llama-3.1-8b"] == pytest.approx(MODEL - 10)
    (tmp_path / "cache" / "quantized" / "llama-3.1-8b-0123456789ab-nf4-double-cuda-bfloat16").mkdir(parents=True)
    assert "llama-3.1-8b in nf4" not in needs(tmp_path, "method=qlora")


def test_an_evaluation_setting_needs_no_second_copy_of_weights(hub: Path, tmp_path: Path) -> None:
    twice = needs(tmp_path, "method=full", "suite.items_per_task=5,6")
    assert twice == needs(tmp_path, "method=full")


def test_checkpoints_and_served_forms_are_there_for_one_run_at_a_time(hub: Path, tmp_path: Path) -> None:
    found = needs(tmp_path, "method=full", "seed=0,1", "train.checkpoint_every_steps=10")
    assert found["checkpoints of one run"] == pytest.approx(2 * 12 * PARAMETERS / GIB)


def test_a_disk_that_is_too_small_names_what_needs_it(hub: Path, tmp_path: Path, monkeypatch) -> None:
    paths = [f"paths.{name}={tmp_path / name}" for name in ("results", "artifacts", "cache")]
    configs = compose(["model=llama-3.1-8b", "method=full", *paths], multirun=True)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 20 * GIB)
    (broken,) = disk.findings(disk.needed(configs))
    assert broken.state == "broken"
    assert broken.found.startswith("29.9 GiB are needed in ")
    assert broken.found.endswith("(the model llama-3.1-8b 15.0, weights of full 15.0), 20.0 are free")
    assert "paths.artifacts" in broken.mend
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 30 * GIB)
    (fine,) = disk.findings(disk.needed(configs))
    assert (fine.state, fine.found) == ("fine", "room for the 29.9 GiB that will be written")
