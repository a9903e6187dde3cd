"""What full, LoRA and QLoRA train, in which dtypes, and that they start alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from bench.compose import compose
from bench.worker import methods, models
from bench.worker.device import Device

IDS = torch.tensor([[5, 6, 7, 8, 9]])
BF16 = Device("cpu", torch.bfloat16, "sdpa", "off")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    (config,) = compose(["model=tiny-random"], multirun=False)
    return models.locate(config.model, tmp_path_factory.mktemp("cache"))


def trainable_model(source: str, method: str, *overrides: str, seed: int = 0):
    settings = ["model=tiny-random", f"method={method}", f"paths.cache={Path(source).parents[1]}", *overrides]
    (config,) = compose(settings, multirun=False)
    base = methods.load_base(config, source, "cpu", torch.bfloat16)
    return methods.make_trainable(base, config.method, seed), config


@pytest.mark.parametrize(("method", "dtype"), [("full", torch.float32), ("full_bf16", torch.bfloat16)])
def test_full_trains_every_weight(source: str, method: str, dtype: torch.dtype) -> None:
    model, _ = trainable_model(source, method)
    assert all(p.requires_grad and p.dtype is dtype for p in model.parameters())


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_are_fp32_over_a_frozen_base(source: str, method: str) -> None:
    model, _ = trainable_model(source, method)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and p.dtype is torch.float32 for name, p in trained.items())
    kinds = {name.split(".lora_")[0].split(".")[-1] for name in trained}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_qlora_keeps_norms_and_embeddings_as_lora_does(source: str) -> None:
    def dtypes(method: str) -> dict[str, torch.dtype]:
        model, _ = trainable_model(source, method)
        return {n: p.dtype for n, p in model.named_parameters() if "norm" in n or "embed" in n}

    assert dtypes("lora") == dtypes("qlora")


def test_the_adapter_starts_as_the_seed_says_and_changes_nothing(source: str) -> None:
    def first_a(method: str, seed: int) -> torch.Tensor:
        torch.manual_seed(999)  # whatever happened before
        model, _ = trainable_model(source, method, seed=seed)
        return next(p for n, p in model.named_parameters() if "lora_A" in n).detach()

    torch.testing.assert_close(first_a("lora", 1), first_a("lora", 1))
    torch.testing.assert_close(first_a("lora", 1), first_a("qlora", 1))
    assert not torch.equal(first_a("lora", 1), first_a("lora", 2))

    (config,) = compose(["model=tiny-random", "method=lora"], multirun=False)
    base = methods.load_base(config, source, "cpu", torch.float32)
    with torch.no_grad(), BF16.autocast():
        before = base(IDS).logits.clone()
        after = methods.make_trainable(base, config.method, 0)(IDS).logits
    torch.testing.assert_close(before.float(), after.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_without_bf16_everything_computes_in_fp32(source: str, method: str) -> None:
    (config,) = compose(["model=tiny-random", f"method={method}"], multirun=False)
    model = methods.make_trainable(methods.load_base(config, source, "cpu", torch.float32), config.method, 0)
    assert model(IDS).logits.dtype is torch.float32
    assert torch.bfloat16 not in {p.dtype for p in model.parameters()}


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_the_stored_base_is_the_quantized_one(source: str, tmp_path: Path, scheme: str, monkeypatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(models, "release", lambda: freed.append(True))
    overrides = ["model=tiny-random", "method=qlora", f"method.quantization.scheme={scheme}", f"paths.cache={tmp_path}"]
    (config,) = compose(overrides, multirun=False)
    quantization = methods._quantization(config.method.quantization, torch.bfloat16)
    fresh = methods._without_repacking(
        models.load_weights(
            config.model, source, dtype=torch.bfloat16, quantization_config=quantization, device_map={"": "cpu"}
        )
    )
    stored = methods.load_base(config, source, "cpu", torch.bfloat16)
    (folder,) = (tmp_path / "quantized").glob("[!.]*")
    assert scheme in folder.name
    assert stored.name_or_path == str(folder)
    assert freed == [True]  # the one that was quantized, before it is loaded again
    with torch.no_grad():
        assert torch.equal(stored(IDS).logits, fresh(IDS).logits)


def test_parameters_total_counts_a_4_bit_weight_as_two(source: str) -> None:
    lora, _ = trainable_model(source, "lora")
    qlora, _ = trainable_model(source, "qlora")
    assert methods.parameters_total(lora) == methods.parameters_total(qlora)
    assert sum(p.numel() for p in qlora.parameters()) < methods.parameters_total(qlora)


def test_the_quantized_parameters_are_those_of_the_linear_layers(source: str) -> None:
    lora, _ = trainable_model(source, "lora")
    linear = sum(m.weight.numel() for n, m in lora.named_modules() if n.endswith("base_layer"))
    assert methods.parameters_quantized(lora) == 0
    for overrides in ((), ("method.quantization.scheme=int8",)):
        qlora, _ = trainable_model(source, "qlora", *overrides)
        assert methods.parameters_quantized(qlora) == linear > 0


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_what_is_saved_is_what_is_evaluated(source: str, method: str, tmp_path: Path) -> None:
    model, config = trainable_model(source, method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape))
        methods.save_trained(model.eval(), config.method, tmp_path)
        loaded = methods.load_trained(config, source, tmp_path, "cpu", torch.bfloat16)
        with BF16.autocast():
            expected, found = model(IDS).logits.float(), loaded(IDS).logits.float()
    assert list(tmp_path.glob("*.safetensors"))
    assert {p.dtype for name, p in loaded.named_parameters() if "lora_" in name} <= {torch.bfloat16}  # as the base
    tolerance = 0.05 if method == "full" else 0.02  # full is rounded to bf16 when it is saved
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_adding_in_fp32_keeps_a_young_adapter(source: str) -> None:
    """The branch after one step of 1e-4 is below half a bf16 step of the output: in bf16 it is rounded away."""

    def distance(add_in_fp32: str) -> float:
        model, config = trainable_model(source, "lora", f"method.adapter.add_in_fp32={add_in_fp32}")
        methods.add_adapters_in_fp32(model, config.method)
        layer = model.base_model.model.model.layers[0].mlp.down_proj
        x = torch.ones(1, 128)
        with torch.no_grad():
            layer.get_base_layer().weight.fill_(1 / 128)
            layer.lora_B["default"].weight.fill_(1e-5)
            layer.lora_A["default"].weight.fill_(1e-2)
            with BF16.autocast():
                return (layer(x).float() - 1).abs().max().item()

    assert distance("false") == 0
    assert distance("true") == pytest.approx(16 * 1e-5 * 128 * 1e-2 * 2, rel=0.02)


@pytest.mark.parametrize(
    "override",
    ["init=pissa", "init=olora", "init=gaussian", "init=orthogonal", "use_dora=true", "use_rslora=true"],
)
def test_what_is_evaluated_is_what_was_trained(smoke, tmp_path: Path, override: str) -> None:
    """Some variants change the base's weights when they start; loading must do it again, to the same numbers."""
    (config,) = compose(smoke("method=lora", f"++method.adapter.{override}", "method.adapter.rank=4"), multirun=False)
    source = models.locate(config.model, Path(config.paths.cache))
    model = methods.make_trainable(methods.load_base(config, source, "cpu", torch.float32), config.method, 0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    methods.save_trained(model, config.method, tmp_path / "weights")
    loaded = methods.load_trained(config, source, tmp_path / "weights", "cpu", torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits, rtol=1e-3, atol=1e-4)


def test_loraplus_lets_b_learn_faster(smoke) -> None:
    (config,) = compose(smoke("method=lora", "method.adapter.loraplus_lr_ratio=16"), multirun=False)
    source = models.locate(config.model, Path(config.paths.cache))
    model = methods.make_trainable(methods.load_base(config, source, "cpu", torch.float32), config.method, 0)
    arguments = TrainingArguments(output_dir="unused", learning_rate=1e-3, use_cpu=True, optim="adamw_torch_fused")
    optimizer = methods.make_optimizer(model, config.method, arguments)
    assert optimizer is not None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {16 * 1e-3}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-3}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())


def on_the_grid(smoke, *overrides: str):
    """(model, config): full fine-tuning of a base whose weights are bf16 numbers, as most published ones are."""
    (config,) = compose(smoke("method=full", *overrides), multirun=False)
    source = models.locate(config.model, Path(config.paths.cache))
    model = methods.make_trainable(methods.load_base(config, source, "cpu", torch.bfloat16), config.method, 0)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model, config


def test_master_weights_leave_the_grid_and_round_back_to_the_base(smoke) -> None:
    model, config = on_the_grid(smoke)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad(), BF16.autocast():
        untouched = model(IDS).logits
        methods.leave_bf16_grid(model, config, torch.bfloat16)
        torch.testing.assert_close(model(IDS).logits, untouched, rtol=0, atol=0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "_proj" in name or name == "lm_head.weight"} - embeddings_of(model)
    for name in moved:
        assert torch.equal(model.get_parameter(name).bfloat16(), before[name].bfloat16())


def embeddings_of(model) -> set[str]:
    """Names under which the input embeddings go: they are used in fp32 and stay."""
    table = model.get_input_embeddings().weight
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p is table}


def test_a_young_update_is_seen_on_average(smoke) -> None:
    """An update of a tenth of a step of the grid: lost from the grid, seen in full from between."""
    seen = {}
    for dither in ("true", "false"):
        model, config = on_the_grid(smoke, f"method.dither={dither}")
        weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
        base = weight.detach().clone()
        methods.leave_bf16_grid(model, config, torch.bfloat16)
        step = torch.ldexp(torch.ones_like(base), torch.frexp(base).exponent - 8)
        with torch.no_grad():
            weight += 0.1 * step
            seen[dither] = float(((weight.bfloat16().float() - base) / step).mean())
    assert seen["false"] == 0
    assert seen["true"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("overrides", "compute_dtype"),
    [(["method=full"], torch.float32), (["method=full_bf16"], torch.bfloat16), (["method=lora"], torch.bfloat16)],
)
def test_only_fp32_masters_under_bf16_are_moved(smoke, overrides: list[str], compute_dtype: torch.dtype) -> None:
    (config,) = compose(smoke(*overrides), multirun=False)
    source = models.locate(config.model, Path(config.paths.cache))
    model = methods.make_trainable(methods.load_base(config, source, "cpu", compute_dtype), config.method, 0)
    before = [p.detach().clone() for p in model.parameters()]
    methods.leave_bf16_grid(model, config, compute_dtype)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
