"""Attention on a CPU as two matrix products with a softmax between, which transformers knows as "products".

In a compiled layer it can be several times as fast as PyTorch's own kernel (sdpa), alone it can be slower. The values
are the same to rounding: products of 16-bit numbers are summed in fp32, and the softmax is in fp32, in both.

    >>> use_products(model)  # before its layers are compiled
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from bench.identity import digest, write_atomic

PRODUCTS = "products"
# Beyond, sdpa: it never holds a number for each pair of tokens.
LONGEST_TOKENS = 512
_WORTH = 1.1  # times as fast as sdpa
_ROUNDS = 5
_USUAL_TOKENS = 128  # in a whole compiled step products gain beyond it too, where alone they would not


def use_products(model: Any) -> bool:
    """Let a model whose attention is sdpa compute it as products, if it takes its attention from transformers' list.

    Returns:
        whether it does now.
    """
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    model.set_attn_implementation(PRODUCTS)
    return True


def faster_on_cpu(dtype: torch.dtype, compiled: bool, processor: str, kept: Path) -> str:
    """Which of "products" and "sdpa" is faster here, forward and backward.

    It is measured once for a processor, a number of threads and a PyTorch, so that all runs of a sweep compute alike.

    Args:
        compiled: as a compiler's, which takes some seconds more to find out.
        kept: a folder for the answer.
    """
    here = [processor, torch.get_num_threads(), torch.__version__, Path(__file__).read_text()]
    stamp = digest([*here, str(dtype), compiled])
    file = kept / f"{stamp}.json"
    with suppress(OSError, ValueError, KeyError):  # not there, or torn by a lost machine
        return str(json.loads(file.read_bytes())["fastest"])
    seconds = _measured_seconds(dtype, compiled)
    fastest = PRODUCTS if seconds["sdpa"] > _WORTH * seconds[PRODUCTS] else "sdpa"
    write_atomic(file, json.dumps({"fastest": fastest, "seconds": seconds}))
    return fastest


def attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """As transformers calls it: query (rows, heads, tokens, channels), key and value (rows, key heads, keys, channels).

    Args:
        attention_mask: (rows, 1, tokens, keys), true where a token sees a key; None: itself and what is before it.

    Returns:
        (rows, tokens, heads, channels), and no weights.
    """
    tokens, keys = query.shape[2], key.shape[2]
    causal = options.get("is_causal", getattr(module, "is_causal", True))
    plain = attention_mask.dtype is torch.bool if attention_mask is not None else causal and tokens == keys
    if not plain or dropout or tokens == 1 or keys > LONGEST_TOKENS or options.get("position_bias") is not None:
        options |= {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None:
        attention_mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril()[None, None]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # A compiler decides by itself what to keep for the backward pass.
    attend = _attend if torch.compiler.is_compiling() else _Attention.apply
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(PRODUCTS, attention)
AttentionMaskInterface.register(PRODUCTS, sdpa_mask)


def _probabilities(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, scaling: float) -> torch.Tensor:
    """(rows, key heads, heads a key head, tokens, keys) in fp32.

    The heads that share a key head are one product. A padding row that sees nothing sees all alike, and never NaN.
    """
    rows, heads, tokens, channels = query.shape
    groups = key.shape[1]
    scores = query.reshape(rows, groups, -1, channels) @ key.transpose(-1, -2)
    scores = scores.view(rows, groups, heads // groups, tokens, -1).float() * scaling
    return scores.masked_fill(~mask.unsqueeze(2), torch.finfo(torch.float32).min).softmax(-1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    chances = _probabilities(query, key, mask, scaling).to(value.dtype)
    return (chances.flatten(2, 3) @ value).view(*query.shape[:3], value.shape[-1])


class _Attention(torch.autograd.Function):
    """`_attend` that keeps its inputs and computes the probabilities again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        ctx.save_for_backward(*given[:4])
        ctx.scaling = given[4]
        return _attend(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        chances = _probabilities(query, key, mask, ctx.scaling)
        out = gradients[0].reshape(*key.shape[:2], -1, value.shape[-1])
        to_value = chances.to(value.dtype).flatten(2, 3).transpose(-1, -2) @ out
        change = (out @ value.transpose(-1, -2)).view_as(chances).float() * chances
        change = change - chances * change.sum(-1, keepdim=True)
        scores = (change * ctx.scaling).to(query.dtype).flatten(2, 3)
        to_key = scores.transpose(-1, -2) @ query.reshape(*key.shape[:2], -1, query.shape[-1])
        return (scores @ key).view_as(query), to_key, to_value, None, None


def _measured_seconds(dtype: torch.dtype, compiled: bool) -> dict[str, float]:
    """The best of some rounds by turns: four rows of a usual length, nine heads over three key heads."""
    attend = _attend if compiled else _Attention.apply
    shapes = [(4, heads, _USUAL_TOKENS, 64) for heads in (9, 3, 3)]
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    mask = torch.ones(4, 1, _USUAL_TOKENS, _USUAL_TOKENS, dtype=torch.bool).tril()
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "sdpa": lambda: scaled_dot_product_attention(
            query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), attn_mask=mask
        ),
        PRODUCTS: lambda: attend(query, key, value, mask, 0.125),
    }
    if compiled:
        ways = {name: torch.compile(way, dynamic=True) for name, way in ways.items()}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way().sum().backward()
            best[name] = min(best[name], time.perf_counter() - started)
    return best
