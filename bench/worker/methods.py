"""The only code in which full fine-tuning, LoRA and QLoRA differ.

A method is a way to load the base and a way to make some of it trainable; everything after that is shared.

    full    fp32 master weights, everything trainable
    lora    16-bit base, frozen; fp32 adapters
    qlora   4-bit base, frozen; the same fp32 adapters, the same numerics

`peft.prepare_model_for_kbit_training` is not used: it would upcast the norms and embeddings of QLoRA alone.

PEFT and bitsandbytes take seconds to import, and are imported by the methods that need them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.pytorch_utils import Conv1D

from bench.config import CUTS_WEIGHTS, AdapterConfig, MethodConfig, QuantizationConfig, RunConfig
from bench.elsewhere import loaded_problems
from bench.mistakes import ConfigurationError
from bench.worker.instruments.tokens import elements, matrices
from bench.worker.models import load_weights, local_folder, stored

if TYPE_CHECKING:
    from peft import LoraConfig


OPTIMIZERS = {  # ours -> transformers.TrainingArguments.optim
    "adamw": "adamw_torch_fused",  # one pass over the state, on CPUs too; the same arithmetic
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def load_to_train(config: RunConfig, source: str, device: str, compute_dtype: torch.dtype, **options: Any) -> Any:
    """`load_base` in a form that FSDP and ZeRO-3 can cut, if `hardware.strategy` is one of them.

    They cut floating-point tensors only, so quantized weights are stored in elements of the compute dtype; the values
    are the same. Other weights wait on the CPU, from where every device takes its part.
    """
    if config.hardware.strategy in CUTS_WEIGHTS:
        options["storage"] = compute_dtype
        device = device if config.method.quantization else "cpu"
    return load_base(config, source, device, compute_dtype, **options)


def load_base(
    config: RunConfig, source: str, device: str, compute_dtype: torch.dtype, storage: torch.dtype = torch.uint8,
    **options: Any,
) -> Any:  # fmt: skip
    """The model as the method keeps it while training, before anything is made trainable.

    Without bf16 arithmetic (`compute_dtype` float32) there is no autocast, so the weights are fp32 for all methods.

    Args:
        storage: dtype of the elements that 4-bit weights are packed into.
    """
    dtype = compute_dtype if compute_dtype is torch.float32 else getattr(torch, config.method.weights_dtype)
    options |= {"dtype": dtype, "device_map": {"": device}}
    if config.method.quantization is None:
        return load_weights(config.model, source, **options)

    def quantize() -> Any:
        scheme = _quantization(cast("QuantizationConfig", config.method.quantization), compute_dtype, storage)
        return load_weights(config.model, source, quantization_config=scheme, **options)

    found = stored(config, source, torch.device(device).type, dtype, storage, quantize)
    if found is None:
        return _without_repacking(quantize())
    folder, commit = found
    model = _without_repacking(load_weights(config.model, str(folder), **options))
    model.config._commit_hash = commit
    return model


def make_trainable(model: PreTrainedModel, method: MethodConfig, seed: int) -> torch.nn.Module:
    """Choose what is trained. The seed is set first: the adapter's start depends on it."""
    set_seed(seed)
    if method.adapter is None:
        _experts_follow_autocast()
        return model.requires_grad_(True)
    from peft import get_peft_model

    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.float()  # the same values; with them in 16 bit it takes no fp32, which is what adapters give
    return get_peft_model(model, lora_config(method.adapter, model), autocast_adapter_dtype=True)


def _experts_follow_autocast() -> None:
    """Let experts with fp32 master weights multiply in autocast's dtype, as linear layers do.

    transformers' grouped product knows nothing of autocast: it would make full fine-tuning compute in fp32 there.
    """

    def forward(experts: Any, hidden: torch.Tensor, *routes: torch.Tensor) -> Any:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        seen: Any = _Cast(experts, dtype) if dtype else experts
        return grouped_mm_experts_forward(seen, hidden, *routes)

    ALL_EXPERTS_FUNCTIONS["grouped_mm"] = forward


@dataclass(frozen=True)
class _Cast:
    """A module whose tensors are read in another dtype."""

    module: torch.nn.Module
    dtype: torch.dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        return value.to(self.dtype) if isinstance(value, torch.Tensor) else value


@torch.no_grad()
def leave_bf16_grid(model: Any, config: RunConfig, compute_dtype: torch.dtype) -> None:
    """Start fp32 master weights anywhere between the numbers that round to the base's, instead of exactly on them.

    A 16-bit base lies on the grid of bf16. Autocast rounds the weights at each use, so from there an update below half
    a step of the grid is not seen at all, for all weights alike. From a random place within the step it is seen by
    that share of the weights which it carries over an edge: on average, exactly. The first forward pass is the
    untouched base's. See docs/fairness.md.
    """
    method = config.method
    if method.trains != "all_weights" or not method.dither or compute_dtype is not torch.bfloat16:
        return
    generator = torch.Generator(model.device).manual_seed(config.seed)  # on a CPU 8B would take half a minute
    embeddings = model.get_input_embeddings().weight  # used as they are, in fp32
    for _, _, weight in matrices(model):
        if weight is not embeddings and weight.dtype is torch.float32:
            step = torch.ldexp(torch.ones_like(weight), torch.frexp(weight).exponent - 8)
            place = torch.rand(weight.shape, generator=generator, device=weight.device) - 0.5
            moved = weight + place * step
            weight.copy_(torch.where(moved.bfloat16() == weight, moved, weight))


def start_adapter(model: Any, config: RunConfig, source: str) -> None:
    """Give an adapter its start from the base's quantization error (LoftQ), which reads the 16-bit base at `source`.

    Other starts need their own layer alone, and PEFT has made them. CUDA only, as PEFT's function is.
    """
    if config.method.adapter is not None and config.method.adapter.init == "loftq":
        from peft import replace_lora_weights_loftq

        replace_lora_weights_loftq(model, model_path=str(local_folder(config.model, source)))


def make_optimizer(model: Any, method: MethodConfig, arguments: TrainingArguments) -> torch.optim.Optimizer | None:
    """LoRA+'s optimizer, with B's learning rate at a multiple of A's; None: the trainer makes the usual one."""
    if method.adapter is None or method.adapter.loraplus_lr_ratio is None:
        return None
    from peft.optimizers import create_loraplus_optimizer

    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model, kind, lr=options.pop("lr"), loraplus_lr_ratio=method.adapter.loraplus_lr_ratio,
        loraplus_weight_decay=arguments.weight_decay, **options,
    )  # fmt: skip
    # No empty groups: schedules and records look at the first one.
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def _without_repacking(model: Any) -> Any:
    """bitsandbytes' 4-bit layers would repack their weights for its CPU inference kernel at every change between
    training and evaluation, which compiled layers cannot follow. Only CPUs look at this."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def add_adapters_in_fp32(model: torch.nn.Module, method: MethodConfig) -> None:
    """Let each adapter's branch be added to its layer's output in fp32, for training without compilation.

    PEFT adds in the output's dtype. In bf16 a young adapter's branch is below half a step of the output's
    mantissa and is rounded away, so that LoRA's first steps do nothing, which full fine-tuning's do not suffer.
    Compiled layers fuse the addition and keep it. See docs/fairness.md.
    """
    if method.adapter is None or not method.adapter.add_in_fp32:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        # Of routers and experts PEFT adds the branch to the weights instead; their outputs may be several.
        if isinstance(module, BaseTunerLayer) and not hasattr(module, "parameter_name"):
            module.get_base_layer().register_forward_hook(lambda module, arguments, output: output.float())


def reduce_intruders(model: Any, method: MethodConfig) -> None:
    """Scale the intruder dimensions of a trained adapter down, by PEFT (arXiv 2410.21228): first ten, cosine 0.5."""
    if method.adapter is None or method.adapter.reduce_intruders is None:
        return
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    reduce_intruder_dimension(model, mitigation_lambda=method.adapter.reduce_intruders, logging_sink=None)
    for layer in (module for module in model.modules() if hasattr(module, "lora_A")):
        for factor in (layer.lora_A, layer.lora_B):  # PEFT made a second adapter; the saved one is the first
            factor["default"].weight.data.copy_(factor["intruder_reduced"].weight.data)
    model.set_adapter("default")
    model.delete_adapter("intruder_reduced")


def save_trained(
    model: torch.nn.Module, method: MethodConfig, folder: Path, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Write what was trained: the adapter as it is, or all weights in bf16, the form that is shipped.

    Args:
        state: the weights, if the model holds only parts of them (`multi.whole_state`).
    """
    save, options = cast("Any", model).save_pretrained, {"save_embedding_layers": False}  # they are frozen
    if method.adapter is None:
        in_bf16: dict[int, torch.Tensor] = {}  # by storage, so that tied weights stay tied and are written once
        whole = (model.state_dict() if state is None else state).items()
        state = {name: in_bf16.setdefault(t.data_ptr(), t.to(torch.bfloat16)) for name, t in whole}
        options = {}
    save(str(folder), state_dict=state, **options)


def load_trained(
    config: RunConfig, source: str, weights: Path, device: str, compute_dtype: torch.dtype, **options: Any
) -> Any:
    """The tuned model for evaluation: the saved weights, or the base with its adapter (not merged)."""
    method = config.method
    if method.loaded_from and (wrong := loaded_problems(config, local_folder(config.model, source))):
        raise ConfigurationError([f"{method.name}: {problem}" for problem in wrong])
    if method.trains == "all_weights":
        return load_weights(config.model, str(weights), dtype=compute_dtype, device_map={"": device}, **options)
    base = load_base(config, source, device, compute_dtype, **options)
    if device == "cpu" and method.quantization is not None and method.quantization.scheme != "int8":
        # The same weights in bf16 products. bitsandbytes' own CPU inference kernel (AVX-512 bf16) is not used: it
        # was slower here and its rounding differs.
        base = base.dequantize(compute_dtype)
    if method.trains != "adapter":
        return base
    from peft import PeftModel

    # In the base's dtype: autocast would round fp32 adapters to bf16 at each call, at a price and to the same numbers.
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # the base has more layers
            return PeftModel.from_pretrained(base, weights, autocast_adapter_dtype=False).eval()
    except (RuntimeError, ValueError, UserWarning) as error:
        if method.loaded_from is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigurationError([f"{method.name}: does not fit {config.model.name}: {str(error)[:300]}"]) from error


def load_as_stored(
    config: RunConfig, source: str, device: str, compute_dtype: torch.dtype, scheme: QuantizationConfig | None = None
) -> Any:
    """A model as its folder or hub repository holds it, or quantized while it is read."""
    options: dict[str, Any] = {"dtype": compute_dtype, "device_map": {"": device}}
    if scheme is not None:
        options["quantization_config"] = _quantization(scheme, compute_dtype)
    return _without_repacking(load_weights(config.model, source, **options))


def parameters_total(model: torch.nn.Module) -> int:
    """Parameters of the model and its adapter; a 4-bit weight, stored two to a byte, counts as two."""
    return sum(elements(p) for p in model.parameters())


def parameters_quantized(model: torch.nn.Module) -> int:
    """Parameters stored in 4 or 8 bit, each counted as one."""
    return sum(elements(p) for p in model.parameters() if hasattr(p, "quant_state") or p.dtype is torch.int8)


def _quantization(
    quantization: QuantizationConfig, compute_dtype: torch.dtype, storage: torch.dtype = torch.uint8
) -> BitsAndBytesConfig:
    if quantization.scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.scheme,
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=storage,
    )


def lora_config(adapter: AdapterConfig, model: torch.nn.Module, *, start: bool = True) -> LoraConfig:
    """The adapter in PEFT's terms for a model; without its `start` where there are no weights to start from."""
    from peft import LoraConfig

    init = True if adapter.init in ("default", "loftq") else adapter.init
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # weights the other way round
        init_lora_weights=init if start else False,  # type: ignore[arg-type]
    )


# ------------------------------------------------------------------------------------------------- forms of serving
Start = Literal["original", "quantized", "dequantized", "trained", "exported"]
_STARTS: dict[Start, str] = {
    "original": "the original base",
    "quantized": "the quantized base",
    "dequantized": "the quantized base, dequantized,",
    "trained": "all weights as trained",
    "exported": "what was exported",
}
_ADAPTER = {"none": "", "beside": " with the adapter beside it", "merged": " with the adapter merged"}


@dataclass(frozen=True)
class Form:
    """Weights to start from, what is done with the adapter, and whether the result is quantized.

    Attributes:
        start: the base in 16 bit, the base in few bits, that dequantized, weights that were all trained, or a folder
            that was exported.
        adapter: left out, computed beside its layers, or merged into their weights.
        scheme: how the result is stored in few bits, made from the 16-bit form `before`; None: as it is.
        base: the form without the adapter, for ratios of latency; None: this is one.
        timed_as: the form with the same layers, whose latency it has; None: timed itself.
    """

    name: str
    start: Start
    adapter: Literal["none", "beside", "merged"] = "none"
    scheme: QuantizationConfig | None = None
    before: Form | None = None
    base: str | None = None
    timed_as: str | None = None

    @property
    def is_built(self) -> bool:
        """Whether it must be written to disk before it can be loaded."""
        return self.adapter == "merged" or self.scheme is not None

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are stored in few bits."""
        return self.scheme is not None or self.start == "quantized"

    @property
    def is_what(self) -> str:
        """In words."""
        bits = f", quantized to {self.scheme.scheme}" if self.scheme else "" if self.is_quantized else ", 16-bit"
        return f"{_STARTS[self.start]}{_ADAPTER[self.adapter]}".rstrip(",") + bits


def served_forms(method: MethodConfig) -> list[Form]:
    """The ways to serve what a method made: bases, then the form that is evaluated, then those made from it."""
    base, scheme = Form("base", "original"), method.quantization or QuantizationConfig()
    if method.trains == "nothing":
        return [Form(f"base_{scheme.scheme}", "quantized") if method.quantization else base]
    if method.adapter is None:
        tuned = Form("tuned", "trained", base="base")
        return [base, tuned, Form(f"tuned_{scheme.scheme}", "trained", "none", scheme, tuned, "base")]
    merged_small = f"merged_{scheme.scheme}"
    if method.quantization is None:
        merged = Form("merged", "original", "merged", base="base")
        small = Form(merged_small, "original", "merged", scheme, merged, "base")
        return [base, Form("unmerged", "original", "beside", base="base"), merged, small]
    quantized = Form(f"base_{scheme.scheme}", "quantized")
    beside = Form("unmerged", "quantized", "beside", base=quantized.name)
    merged = Form("merged", "dequantized", "merged", base="base")
    original = Form("merged_original", "original", "merged", base="base", timed_as="merged")
    small = Form(merged_small, "dequantized", "merged", scheme, merged, quantized.name)
    other = Form(f"merged_original_{scheme.scheme}", "original", "merged", scheme, original, quantized.name, small.name)
    return [base, quantized, beside, merged, original, small, other]
