"""`torch.compile` of the decoder layers, one by one: all share one graph, so it costs one compilation, not one a layer.

Compiled 4-bit layers dequantize their weights again in the backward pass, as the uncompiled ones do; nothing in 16 bits
is kept between (tests/worker/test_train.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def compile_layers(model: torch.nn.Module) -> Callable[[], None]:
    """Compile the repeated decoder layers.

    Returns:
        a function that puts the layers back as they were.
    """
    layers = decoder_layers(model)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)

    def restore() -> None:
        for layer in layers:
            del layer.forward  # uncovers the class's own

    return restore


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The longest list of equal modules: the transformer's layers under any wrapper."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    alike = [list(m) for m in lists if len({type(child) for child in m}) == 1]
    return max(alike, key=len, default=[])
