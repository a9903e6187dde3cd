"""What shows of a model on the meta device, without weights: what a method reaches in it, and its shape.

What a method reaches is said, or refused by name, before anything is trained. The planner has closed forms of a few
kinds; `count` counts any other that transformers can build, with its experts, fused projections, tied embeddings and
sliding windows. The cache keeps what it counted under the hash of config.json.

>>> said(config, source)  # from the model's description: no weights are loaded
['adapter: on 14 modules (q_proj 2, k_proj 2, ...) with 73% of 101,000 parameters; trains 36,864, 36.50% as many']
>>> check_loaded(model, config, device)  # by short passes through the loaded model
>>> counted(without_weights(config.model, config.model.location)).layers
(Layers(name='model.layers.0', count=13, ..., window=4096), Layers(name='model.layers.1', count=13, ..., window=None))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bench.config import CUTS_WEIGHTS, AdapterConfig, ModelConfig, RunConfig, suggest
from bench.identity import write_atomic
from bench.mistakes import ConfigurationError, refuse
from bench.planner.advice import config_file, counted_path
from bench.planner.tensors import Layers, Linear, Shape
from bench.record import to_json
from bench.worker import data, methods
from bench.worker.device import Device
from bench.worker.instruments.tokens import active_share, matrices
from bench.worker.loss import alike, inference
from bench.worker.main import Context

if TYPE_CHECKING:
    from peft import LoraConfig

Modules = dict[str, Any]  # by name
LINEAR = (torch.nn.Linear, Conv1D)
_TARGETS = "method.adapter.target_modules"


def said(config: RunConfig, source: str) -> list[str]:
    """What the method does to the model, a line each.

    Raises:
        ConfigurationError: an adapter or a quantization that this model cannot have, with all reasons.
    """
    method = config.method
    if method.adapter is None and method.quantization is None:
        return []
    model = without_weights(config.model, source)
    linear: Modules = {name: m for name, m in model.named_modules() if isinstance(m, LINEAR)}
    passed_by = _passed_by(model, linear)
    lines, problems = [], list[str]()
    if method.quantization is not None:
        lines.append(_quantized(model, linear, method.quantization.scheme))
        if passed_by:
            problems.append(
                f"method.quantization: {config.model.name} multiplies by the weights of {', '.join(passed_by)} without "
                "calling these layers, which quantized weights do not allow; use full or lora"
            )
    if method.adapter is not None:
        found, wrong = _adapted(model, method.adapter, linear, passed_by)
        lines, problems = lines + found, problems + wrong
    refuse(problems)
    return lines


def without_weights(model: ModelConfig, source: str) -> Any:
    """The model on the meta device, in evaluation mode."""
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    description = AutoConfig.from_pretrained(source, revision=model.revision or "main", **options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(description, **options).eval()


def _passed_by(model: Any, linear: Modules) -> list[str]:
    """Linear layers whose weights the model reads without calling them (dt_proj of Mamba), by their last names.

    Empty where the model cannot be run without weights.
    """
    called: set[torch.nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in linear.values()]
    ids, mask = (torch.ones(shape, dtype=torch.long, device="meta") for shape in ((1, 4), (1, 1, 4, 4)))
    done = False
    for more in ({}, {"attention_mask": mask}):  # a whole mask, where making one would look at values
        with suppress(RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
            model(input_ids=ids, use_cache=False, **more)
            done = True
    for hook in hooks:
        hook.remove()
    return sorted({_last(name) for name, layer in linear.items() if layer not in called}) if done else []


def _quantized(model: Any, linear: Modules, scheme: str) -> str:
    """How much of the model bitsandbytes stores in few bits: linear layers but the head; experts are none."""
    head, total = model.get_output_embeddings(), sum(p.numel() for p in model.parameters())
    stored = sum(layer.weight.numel() for layer in linear.values() if layer is not head)
    experts = sum(w.numel() for name, _, w in matrices(model) if "experts" in name.split(".") and w.ndim == 3)
    kept = f"; the experts, {experts / total:.0%}, stay in 16 bit, which bitsandbytes leaves them in" if experts else ""
    return f"quantization: {scheme} for {stored / total:.0%} of {total:,} parameters{kept}"


def _adapted(
    model: Any, adapter: AdapterConfig, linear: Modules, passed_by: Collection[str]
) -> tuple[list[str], list[str]]:
    """(what is said of the adapter, what is wrong with it)."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, total = model.get_output_embeddings(), sum(p.numel() for p in model.parameters())
    ends = (head, model.get_input_embeddings()) if head.weight is model.get_input_embeddings().weight else ()
    usable = sorted({_last(name) for name, module in linear.items() if module is not head} - set(passed_by))
    config = methods.lora_config(adapter, model, start=False)
    try:
        peft: Any = get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:  # PEFT's refusals, some of which show the whole module in brackets
        words = str(error).replace("lora.ParamWrapper", "an adapter on experts")
        reason = re.split(r" ?\((?:\s|model)|\. |\n", words)[0]
        others = ",".join(name for name in usable if f"'{name}'" not in reason)
        return [], [f"{_TARGETS}: PEFT cannot adapt this model so: {reason.rstrip('.')}; name others, as [{others}]"]
    if unknown := _unmatched(config, peft.base_model.targeted_module_names):
        return [], [f"{_TARGETS}: no module is called {name!r}{suggest(_last(name), usable)}" for name in unknown]
    layers = {name: layer for name, layer in peft.get_base_model().named_modules() if isinstance(layer, BaseTunerLayer)}
    called = {name: _called(name, layer) for name, layer in layers.items()}
    in_weights = dict.fromkeys(called[name] for name, layer in layers.items() if hasattr(layer, "parameter_name"))
    problems = [
        f"{_TARGETS}: {called[name]} is tied to the model's other end, which merging would change too"
        for name, layer in layers.items()
        if layer.get_base_layer() in ends
    ]
    if adapter.init not in ("default", "gaussian") and in_weights:
        problems.append(f"method.adapter.init: {adapter.init} cannot start an adapter on experts; use default")
    problems += [
        f"{_TARGETS}: the model multiplies by the weights of {name} without calling this layer, so that an adapter on "
        f"it would do nothing; name others, as [{','.join(usable)}]"
        for name in sorted(set(called.values()) & set(passed_by))
    ]
    return [_reached(peft, layers, Counter(called.values()), total), *_rounded(in_weights)], problems


def _reached(peft: Any, layers: Modules, called: Counter[str], total: int) -> str:
    """Where an adapter is, the share of the `total` parameters that it is on, and how many it trains."""
    held = sum(
        parameter.numel()
        for layer in layers.values()
        for own, parameter in layer.get_base_layer().named_parameters()
        if getattr(layer, "parameter_name", own) == own
    )
    trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    listed = ", ".join(f"{name} {count}" for name, count in called.items())
    return (
        f"adapter: on {called.total()} modules ({listed}) with {held / total:.0%} of {total:,} parameters; "
        f"trains {trained:,}, {trained / total:.2%} as many"
    )


def _rounded(in_weights: Collection[str]) -> list[str]:
    """PEFT adds an expert's or a router's branch to its weights, in their dtype: no hook can add it in fp32."""
    if not in_weights:
        return []
    return [
        f"adapter: to {', '.join(in_weights)} it is added in the weights' own dtype; in bf16 a change of a weight by "
        "less than half its last bit, as in the first steps, is rounded away"
    ]


def _called(name: str, layer: Any) -> str:
    """An adapted layer's last name; of experts and routers, whose weights PEFT adapts themselves, the weight's."""
    parameter = getattr(layer, "parameter_name", "weight")
    return _last(name) if parameter == "weight" else str(parameter)


def _unmatched(config: LoraConfig, reached: Collection[str]) -> list[str]:
    """The targets of a list, as PEFT has filled it in, that no adapted module is called by."""
    targets = config.target_modules or ()
    if isinstance(targets, str):  # a pattern: PEFT refuses one that matches nothing
        return []
    return sorted(target for target in targets if not any(f".{name}".endswith(f".{target}") for name in reached))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


# ------------------------------------------------------------------------------------------ the shape, for the planner
class UncountedError(Exception):
    """A model that the planner has no place for, and why."""


def count(context: Context) -> dict[str, Any]:
    """Count the model, and keep the shape, or the reason why there is none, where the planner looks for it."""
    model, paths = context.config.model, context.config.paths
    found: Shape | str
    try:
        found = counted(without_weights(model, model.location))
    except UncountedError as error:
        found = str(error)
    file = config_file(model, paths)
    assert file is not None  # it was read
    write_atomic(counted_path(file, model, paths), to_json(found))
    return {}


def counted(model: Any) -> Shape:
    """Of a causal model on the meta device.

    Raises:
        UncountedError: layers without attention, whose states the planner does not estimate.
    """
    text, head, config = model.get_decoder(), model.get_output_embeddings(), model.config.get_text_config()
    read, depth = set(text.modules()), config.num_hidden_layers
    lists = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    prefix = next((name for name, found in lists.items() if found in read and len(found) == depth), None)
    if prefix is None:
        raise UncountedError(f"{type(text).__name__} has no list of {depth} decoder layers")
    layers = [_layer(layer, place, model) for place, layer in enumerate(lists[prefix])]
    alike = {kind: f"{prefix}.{layers.index(kind)}" for kind in layers}
    elsewhere = [  # those of an image see no token of a text
        replace(linear, share=float(model.get_submodule(linear.name) in read))
        for linear in _linears(model, model)
        if linear.is_layer and not linear.name.startswith(prefix) and model.get_submodule(linear.name) is not head
    ]
    return Shape(
        head.weight.shape[0],
        config.hidden_size,
        tied=head.weight is model.get_input_embeddings().weight,
        layers=tuple(replace(kind, name=first, count=layers.count(kind)) for kind, first in alike.items()),
        tensors=_tensors(model, head),
        elsewhere=tuple(elsewhere),
        eager=model.config._attn_implementation == "eager",
    )


def _layer(layer: torch.nn.Module, place: int, model: Any) -> Layers:
    """One decoder layer, without name and count."""
    config, linears = model.config.get_text_config(), list(_linears(layer, model))
    heads = getattr(config, "num_attention_heads", None)
    attention = [linear for linear in linears if "att" in linear.name.lower() and "linear_att" not in linear.name]
    if not heads or not attention:
        raise UncountedError(f"{type(layer).__name__} {place} has no attention: states are not estimated")
    output = next(linear for linear in reversed(attention) if linear.rows == config.hidden_size)
    ordered = (*(m for m in attention if m != output), output, *(m for m in linears if m not in attention))
    queries, key_heads = output.columns, getattr(config, "num_key_value_heads", None)
    reading = sum(linear.rows for linear in attention) - output.rows
    keys = queries // heads * key_heads if key_heads else (reading - queries) // 2
    norms = [name for name, module in layer.named_modules() if "norm" in type(module).__name__.lower()]
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    is_local = kinds[place] == "sliding_attention" if kinds else getattr(config, "use_sliding_window", True)
    of_width, of_heads = sum("." not in name for name in norms), any("." in name and "att" in name for name in norms)
    return Layers("", 0, ordered, heads, queries, keys, max(1, of_width), of_heads, window if is_local else None)


def _linears(part: torch.nn.Module, model: Any) -> Iterator[Linear]:
    """All that multiplies in a part of the model, in the order of definition; one tensor may hold several experts."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = model.config.get_text_config()
    wanted: Any = LoraConfig(r=1, target_modules="all-linear")
    convert_peft_config_for_transformers(wanted, model, None)  # PEFT's names of weights that were layers once
    for name, module, weight in matrices(part):
        share = active_share(config) if "experts" in name.split(".") else 1.0
        if isinstance(module, LINEAR):
            rows, columns = weight.T.shape if isinstance(module, Conv1D) else weight.shape
            named = isinstance(wanted.target_modules, str) or name.rpartition(".")[2] in wanted.target_modules
            yield Linear(name, rows, columns, module.bias is not None, share=share, ranks=int(named))
            continue
        own = next(own for own, tensor in module.named_parameters(recurse=False) if tensor is weight)
        rows, columns = weight.shape[-2:]
        if (rows == config.hidden_size) != ("down" in own):  # some keep inputs x outputs
            rows, columns = columns, rows
        whole = f"{name}.{own}"
        adapted = any(f".{whole}".endswith(f".{target}") for target in wanted.target_parameters or ())
        ranks = [rank for pattern, rank in wanted.rank_pattern.items() if re.fullmatch(pattern, whole)]
        matrices_held = weight.numel() // (rows * columns)
        yield Linear(whole, rows, columns, False, matrices_held, share, False, max(ranks, default=1) if adapted else 0)


def _tensors(model: torch.nn.Module, head: torch.nn.Module) -> dict[str, list[int]]:
    """Elements of every parameter tensor by kind, those of the input's embedding first."""
    found: dict[str, list[int]] = {kind: [] for kind in ("embeddings", "linear", "bias", "norm", "other")}
    for name, tensor in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        matrix = "linear" if isinstance(module, LINEAR) else "other"
        matrix = "embeddings" if module is head or isinstance(module, torch.nn.Embedding) else matrix
        found["bias" if name.endswith("bias") else matrix if tensor.ndim > 1 else "norm"].append(tensor.numel())
    return found


# --------------------------------------------------------------------------------------------------- the loaded model
def check_loaded(model: Any, config: RunConfig, device: Device) -> None:
    """Refuse packing where an example's predictions depend on those before it in the row.

    Raises:
        ConfigurationError: they do: positions that go on, ALiBi, states.
    """
    if not config.train.packing or config.hardware.strategy in CUTS_WEIGHTS:
        return
    first, second = ({"prompt_ids": ids, "answer_ids": []} for ids in ([3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9]))
    with inference(model, device):
        behind, before = (
            model(**{k: v.to(device.type) for k, v in data.pack(rows).items() if k != "labels"}, use_cache=False).logits
            for rows in ([first, second], [second, first])  # alone, attention may have another kernel and rounding
        )
    if not alike(behind[0, 8:], before[0, :5]):
        raise ConfigurationError(
            f"train.packing: {config.model.name} does not keep the examples of a row apart (its positions, states "
            "or attention go on from one to the next); set train.packing=false"
        )
