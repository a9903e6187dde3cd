"""What training did to the weights: planted ranks and intruders, factors and sketches against the whole."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from in_process import in_process
from peft import LoraConfig, get_peft_model
from test_train import configured

from bench.config import AdapterConfig, MethodConfig
from bench.identity import run_folder
from bench.sweep import execute
from bench.worker import weights
from bench.worker.methods import reduce_intruders
from bench.worker.weights import Change, intruders, measure, sketched


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed))[0]


BASE = normal(60, 90) / 10


def with_values(*values: float, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a matrix of BASE's shape with these singular values."""
    spread = torch.tensor(values)
    return orthonormal(60, len(values), seed=seed) * spread, orthonormal(90, len(values), seed=seed + 1).T


@pytest.mark.parametrize("whole", [True, False])
def test_a_planted_rank_is_found(whole: bool) -> None:
    """Five equal singular values; then one that holds 64% of the energy, and two that hold 18% each."""
    left, right = with_values(2, 2, 2, 2, 2)
    found = measure("model.layers.3.mlp.up_proj", BASE, Change(left @ right) if whole else Change(left, right), 5, 0.5)
    assert (found.stable_rank, found.effective_rank) == pytest.approx((5, 5), rel=1e-3)
    assert (found.rank_90, found.layer) == (5, 3)
    assert found.relative_norm == pytest.approx(20**0.5 / float(BASE.norm()), rel=1e-5)
    left, right = with_values(0.8, 18**0.5 / 10, 18**0.5 / 10)
    found = measure("head", BASE, Change(left @ right) if whole else Change(left, right), 5, 0.5)
    assert (found.rank_90, found.layer) == (3, None)
    assert found.stable_rank == pytest.approx(1 / 0.64, rel=1e-3)


def test_a_planted_intruder_is_found_and_a_stronger_known_direction_is_none() -> None:
    u, _, v = torch.linalg.svd(BASE)
    assert intruders(BASE, BASE + 9 * torch.outer(u[:, 40], v[40]), 10, 0.5) == 0  # far down in the base, now the first
    new = u[:, :20].sum(dim=1) / 20**0.5  # 0.22 with each of twenty
    assert intruders(BASE, BASE + 50 * torch.outer(new, v[0]), 10, 0.5) == 1
    assert intruders(BASE, BASE + 50 * torch.outer(new, v[0]), 10, 0.2) == 0
    assert intruders(BASE, BASE, 10, 0.99) == 0


@pytest.mark.parametrize("kept", [0.75, 0.2])
def test_a_planted_intruder_is_scaled_down_and_the_rest_of_the_adapter_stays(kept: float) -> None:
    """An intruder of 50 in one layer, a change without one in another; base and adapter in fp32."""
    u, _, v = torch.linalg.svd(BASE)
    new = u[:, :20].sum(dim=1) / 20**0.5
    model = torch.nn.ModuleDict({name: torch.nn.Linear(90, 60, bias=False) for name in ("one", "other")})
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["one", "other"]))
    for layer, strength, left in (
        (model.base_model.model["one"], 50.0, new),
        (model.base_model.model["other"], 0.1, u[:, 0]),
    ):
        layer.base_layer.weight.data = BASE.clone()
        layer.lora_A["default"].weight.data = torch.stack([v[0], torch.zeros(90)])
        layer.lora_B["default"].weight.data = torch.stack([strength / 2 * left, torch.zeros(60)], dim=1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    adapter = AdapterConfig(reduce_intruders=kept)
    reduce_intruders(model, MethodConfig("lora_reduced", "adapter", adapter=adapter, learning_rate=1e-3))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()  # one adapter, as it is saved
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.split(".")[3] for name in before.keys() - same} == {"lora_A", "lora_B"}
    assert all(".one." in name for name in before.keys() - same)
    changed = model.base_model.model["one"].get_delta_weight("default").detach()
    planted = 50 * torch.outer(new, v[0])
    left, values, right = torch.linalg.svd(BASE + planted)  # the first direction is the intruder
    expected = planted - (1 - kept) * values[0] * torch.outer(left[:, 0], right[0])  # of rank 2, as the adapter
    assert torch.allclose(changed, expected, atol=1e-3)
    assert 0.9 < float(new @ changed @ v[0]) / (50 * kept) < 1.1


def test_no_change_has_no_rank() -> None:
    found = measure("m", BASE, Change(torch.zeros_like(BASE)), 5, 0.5)
    assert (found.relative_norm, found.stable_rank, found.effective_rank, found.rank_90) == (0, None, None, None)
    assert found.intruders == 0


def test_a_large_matrix_is_sketched_as_it_is(monkeypatch) -> None:
    """Decaying singular values, as trained matrices have; the change has rank 20 and a faint full spectrum."""
    u, v = orthonormal(400, 300), orthonormal(500, 300, seed=5)
    base = (u * torch.arange(1, 301) ** -0.7) @ v.T
    change = Change(0.3 * orthonormal(400, 20, seed=3) @ orthonormal(500, 20, seed=4).T + 1e-4 * normal(400, 500))
    exact = measure("m", base, change, 10, 0.5)
    monkeypatch.setattr(weights, "EXACT", 100)
    found = measure("m", base, change, 10, 0.5)
    assert found.relative_norm == pytest.approx(exact.relative_norm, rel=1e-5)
    assert found.stable_rank == pytest.approx(exact.stable_rank, rel=1e-3)
    assert (found.rank_90, found.intruders) == (exact.rank_90, exact.intruders)
    assert exact.intruders > 0
    assert found.effective_rank is None  # needs all singular values
    assert sketched(base, 50)[1][:20] == pytest.approx(torch.linalg.svdvals(base)[:20], rel=1e-3)
    assert torch.equal(sketched(base, 50)[1], sketched(base, 50)[1])


@pytest.mark.parametrize(
    ("method", "rank"),
    [
        (("method=full",), None),
        (("method=lora",), 16),
        (("method=lora_reduced",), 16),
        (("method=lora", "++method.adapter={use_dora: true}"), None),
    ],
)
def test_the_stage_measures_what_was_trained(smoke, monkeypatch, method: tuple[str, ...], rank: int | None) -> None:
    monkeypatch.setattr(execute, "run_stage", in_process)
    config = configured(smoke, *method, "method.learning_rate=0.01", "evaluation.weights=true")
    record = execute.execute(config)
    lines = gzip.decompress((run_folder(config) / "weight_changes.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    assert record.weights
    assert record.weights.matrices == len(rows) > 10
    assert all(row["relative_norm"] > 0 and row["effective_rank"] for row in rows)
    assert {row["name"].rpartition(".")[2] for row in rows} >= {"q_proj", "down_proj"}
    if rank:
        assert max(row["effective_rank"] for row in rows) <= rank
