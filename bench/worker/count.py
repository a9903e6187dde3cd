"""The shape of a model as the planner reads it, counted on the meta device: no weights are downloaded or loaded.

The planner has closed forms of a few kinds; `run` counts any other that transformers can build, with its experts, fused
projections, tied embeddings and sliding windows. The cache keeps what it counted under the hash of config.json.

>>> counted(without_weights(config.model, config.model.location)).layers
(Layers(name='model.layers.0', count=13, ..., window=4096), Layers(name='model.layers.1', count=13, ..., window=None))
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from bench.identity import write_atomic
from bench.planner.advice import config_file, counted_path
from bench.planner.tensors import Layers, Linear, Shape
from bench.record import to_json
from bench.worker.instruments.tokens import active_share, matrices
from bench.worker.main import Context
from bench.worker.reach import without_weights

LINEAR = (torch.nn.Linear, Conv1D)


class UncountedError(Exception):
    """A model that the planner has no place for, and why."""


def run(context: Context) -> dict[str, Any]:
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
