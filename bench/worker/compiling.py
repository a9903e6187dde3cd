"""`torch.compile` of the decoder layers, one by one, without keeping what can be computed again for nothing.

All layers share one graph, so that compiling costs one compilation and not one a layer.

bitsandbytes dequantizes a 4-bit weight in the forward *and* in the backward. The compiler sees that the second time
depends on nothing but the weight, moves it into the forward and keeps the result: a 16-bit copy of every quantized
weight would live until the backward pass, and QLoRA would need more memory than LoRA. `_Dequantizations` tells it to
compute them again, as the uncompiled model does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._inductor import config as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

_RECOMPUTED = ("bitsandbytes.dequantize_4bit.default", "bitsandbytes.dequantize_blockwise.default")


def compile_layers(model: torch.nn.Module) -> Callable[[], None]:
    """Compile the repeated decoder layers, each with the same graph.

    Returns:
        a function that puts the layers back as they were.
    """
    inductor.joint_custom_pre_pass = _Dequantizations()
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


class _Dequantizations(CustomGraphPass):
    """Marks dequantized weights in the joint graph of forward and backward: never saved, always recomputed."""

    def __call__(self, graph: Graph) -> None:
        for node in graph.nodes:
            if node.op == "call_function" and str(node.target) in _RECOMPUTED:
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))  # of the compiler's cache: another pass makes other graphs
