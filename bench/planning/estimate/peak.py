"""The peak of a training step on one device, term by term.

A step's memory rises through the forward pass, is highest when the backward pass begins (everything is kept, the
logits are turned into a gradient) or while it goes through the last layer, and ends with all gradients and the
optimizer. Each of these moments is computed; the highest is the estimate.

>>> estimate(architecture, config.method, numerics, batch, accumulates=True).total
"""

from __future__ import annotations

from dataclasses import replace

from bench.planning.estimate.activations import Batch, residual_bytes, saved_by_layer
from bench.planning.estimate.compiled import saved_by_compiled_layer
from bench.planning.estimate.numerics import Numerics
from bench.planning.estimate.overhead import allocator_bytes, process_bytes
from bench.planning.estimate.parameters import adapter_tensors, base_parameters, linears
from bench.planning.estimate.sharing import ALONE, Parallel, shared
from bench.planning.estimate.static import static_bytes
from bench.planning.estimate.terms import Terms
from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import MethodConfig


def estimate(
    architecture: ArchitectureConfig,
    method: MethodConfig,
    numerics: Numerics,
    batch: Batch,
    *,
    accumulates: bool,
    parallel: Parallel = ALONE,
) -> Terms:
    """The highest moment of a training step, on one device.

    Args:
        batch: a micro-batch of this device.
        accumulates: a step has several micro-batches, so that gradients are there while the next is computed.
    """
    alone = moments(architecture, method, numerics, batch, accumulates=accumulates)
    live = max((shared(moment, architecture, method, numerics, parallel) for moment in alone), key=lambda t: t.total)
    return replace(live, process=process_bytes(numerics), allocator=allocator_bytes(numerics, live))


def moments(
    architecture: ArchitectureConfig, method: MethodConfig, numerics: Numerics, batch: Batch, *, accumulates: bool
) -> list[Terms]:
    """The moments of which one is the highest: backward begins, its last layer, its first layer, the update."""
    a, n = architecture, numerics
    static = static_bytes(a, method, "bfloat16" if n.autocast else "float32")
    held = Terms(weights=static.weights, optimizer=static.optimizer, gradients=static.gradients if accumulates else 0)
    casts = _casts(a, method, n)
    saved = _activations(a, n, batch)
    logits = batch.supervised * a.vocab_size
    loss = 2 * 4 * logits  # fp32: the logits and their log-softmax, then the latter and its gradient
    if method.trains == "nothing":
        return [replace(held, logits=loss)]
    head = a.vocab_size * a.hidden_size
    head_update = (n.compute + n.weights) * head if n.trains_all else 0  # its gradient, as computed and as kept
    embedding_update = n.weights * head if n.trains_all else 0  # dense, beside the sum of those before
    kept_head = embedding_update if a.tie_word_embeddings else 0  # the head's part of it waits for the embedding's
    ended = replace(held, gradients=static.gradients)
    # With checkpointing no layer's copies outlive its forward pass in the graph, but autocast's cache keeps them all.
    in_backward = casts // a.num_hidden_layers if n.checkpointing else casts
    return [
        replace(held, activations=saved, casts=casts, logits=loss),
        replace(held, activations=saved, casts=in_backward, logits=n.compute * logits, workspace=head_update),
        replace(held, activations=saved, casts=in_backward, workspace=kept_head + layer_workspace(a, n, batch)),
        replace(ended, workspace=kept_head + (embedding_update if accumulates else 0)),
    ]


def layer_workspace(a: ArchitectureConfig, n: Numerics, batch: Batch) -> int:
    """Temporary bytes of one layer's backward pass; a checkpointed layer is computed again first."""
    element = 4 if n.adds_in_fp32 or not n.autocast else 2
    # In the feed-forward part: gradients of the product, of both factors, and of the gate before its activation.
    backward = batch.positions * (4 * a.intermediate_size * element + 2 * a.hidden_size * 4)
    again = sum(_layer(a, n, batch).values()) if n.checkpointing else 0
    largest = max(module.weights for module in linears(a)) if n.quantized else 0
    return backward + again + n.compute * largest


def _layer(a: ArchitectureConfig, n: Numerics, batch: Batch) -> dict[str, int]:
    return saved_by_compiled_layer(a, n, batch) if n.compiled else saved_by_layer(a, n, batch)


def _activations(a: ArchitectureConfig, n: Numerics, batch: Batch) -> int:
    """Of all layers and the last norm; the first layer's norm of frozen embeddings keeps nothing."""
    stream = residual_bytes(a, n, batch)
    last_norm = batch.positions * (a.hidden_size * (4 + (stream if n.trains_all else 0)) + 4) if n.trains_all else 0
    if n.checkpointing:
        return a.num_hidden_layers * batch.positions * a.hidden_size * stream + last_norm
    return a.num_hidden_layers * sum(_layer(a, n, batch).values()) + last_norm


def _casts(a: ArchitectureConfig, method: MethodConfig, n: Numerics) -> int:
    """Copies in the compute dtype of the trained fp32 matrices: of base and head, or of the adapter."""
    if not n.autocast:
        return 0
    if not n.trains_all:
        return n.compute * sum(adapter_tensors(a, method.adapter)) if method.adapter else 0
    matrices = base_parameters(a)["linear"] + a.vocab_size * a.hidden_size
    return n.compute * matrices if n.weights != n.compute else 0
