"""Counts and hashes of what was trained on, and the FLOPs that it needs.

Three counts, because published speeds mix them up: non-padding tokens, supervised tokens (those with a label),
and positions (padding included). The hash runs over the exact token stream, so that two runs with equal digests
consumed the same examples in the same order, however they were cut into micro-batches.

    >>> stream = TokenStream()
    >>> stream.enter("timed")
    >>> stream.consume(input_ids, labels, attention_mask)
    >>> stream.read()
    {'timed': TokenCounts(tokens=2327, supervised_tokens=208, positions=2516, examples=16, attended_pairs=189211)}
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch

from bench.planner.time import LinearCosts, attention_flops, linear_flops

IGNORED = -100  # label of positions without a target, PyTorch's convention
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # as configurations of models call their number


@dataclass
class TokenCounts:
    """Sums over batches."""

    tokens: int = 0
    supervised_tokens: int = 0
    positions: int = 0
    examples: int = 0
    attended_pairs: int = 0  # n (n + 1) / 2 of every sequence of n tokens

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class TokenStream:
    """Counts by phase, an instrument; and hashes (input_ids, labels) row by row, padding removed.

    The hash runs over everything consumed, in whatever phase or none.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._phase: str | None = None
        self._counts: dict[str, TokenCounts] = {}

    def enter(self, phase: str) -> None:
        self._phase = phase
        self._counts.setdefault(phase, TokenCounts())

    def stop(self) -> None:
        self._phase = None

    def read(self) -> dict[str, TokenCounts]:
        return dict(self._counts)

    def consume(self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor) -> TokenCounts:
        """Add one right-padded micro-batch; each tensor is (batch, length). Returns the counts of it alone."""
        input_ids, labels, real = input_ids.cpu(), labels.cpu(), attention_mask.cpu().bool()
        for row_ids, row_labels, row_real in zip(input_ids, labels, real, strict=True):
            for row in (row_ids, row_labels):
                self._sha256.update(row[row_real].to(torch.int64).numpy().astype("<i8").tobytes())
            self._sha256.update(b"|")
        lengths = real.sum(dim=1)
        counts = TokenCounts(
            tokens=int(lengths.sum()),
            supervised_tokens=int((labels != IGNORED).sum()),
            positions=input_ids.numel(),
            examples=len(input_ids),
            attended_pairs=int((lengths * (lengths + 1) // 2).sum()),
        )
        if self._phase is not None:
            self._counts[self._phase] = self._counts[self._phase] + counts
        return counts

    def hexdigest(self) -> str:
        """SHA-256 of everything consumed so far."""
        return self._sha256.hexdigest()


def matrices(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, torch.nn.Parameter]]:
    """(name of the module, module, weight) of all that multiplies: linear layers, GPT-2's Conv1D, routers, experts.

    bitsandbytes' and PEFT's layers are among them. Tables of embeddings are not; a head that is tied to one is.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            continue
        for own, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1 and own != "A_log" and not own.endswith("bias"):  # A_log: of states, element by element
                yield name, module, weight


def elements(weight: torch.nn.Parameter) -> int:
    """Of a weight, quantized or not; one in 4 bit is stored two to a byte."""
    state = getattr(weight, "quant_state", None)
    size: int = weight.numel() if state is None else state.shape.numel()
    return size


def active_share(config: Any) -> float:
    """Of the experts of a layer, those that a token goes through."""
    experts = next((n for key in _EXPERTS if (n := getattr(config, key, None))), None)
    return (getattr(config, "num_experts_per_tok", None) or 1) / experts if experts else 1.0


def linear_costs(model: Any) -> LinearCosts:
    """FLOPs per token of the loaded model, quantized or not, with or without adapters (`bench.planner.time`).

    Of experts those count that a token goes through. Recurrences of states are left out: under 2%.
    """
    config = model.config.get_text_config()
    in_head = set(model.get_output_embeddings().modules())
    body = head = 0
    for name, module, weight in matrices(model):
        flops = linear_flops(elements(weight), trained=weight.requires_grad)
        if module in in_head:
            head += flops
        else:
            body += round(flops * active_share(config)) if "experts" in name.split(".") else flops
    heads = getattr(config, "num_attention_heads", None) or 0
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    attending = sum("attention" in kind and "linear" not in kind for kind in kinds)
    return LinearCosts(body, head, attention_flops(attending * heads * head_dim))


def matmul_peak_flops_per_second(
    device: str, dtype: torch.dtype, synchronize: Callable[[], None], seconds: float = 0.3
) -> float:
    """The best of several large square products: what the device can really do, not its data sheet."""
    size = 1024 if device == "cpu" else 4096
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right  # the first call chooses kernels
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        synchronize()
        started = time.perf_counter()
        left @ right
        synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
