"""Greedy decoding of a batch whose rows leave it as they end, over a cache that is allocated once.

transformers decodes every row until the longest answer of its batch has ended, and copies all keys and values at every
token to make room for one more: new tensors, each a little larger than the last, between which glibc's heap keeps
holes. The answers are the same: each row's arithmetic does not change (tests/worker/test_decode.py).

    >>> model.generate(input_ids=..., attention_mask=..., generation_config=greedy, custom_generate=decode)
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_LEAVE_AT = 0.75  # of the rows still run: their keys and values are copied into a smaller batch
_WAIT = 8  # tokens between looks at which rows ended, on a device: each look waits for it


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in tensors of their final length.

    Args:
        length: of prompt and answer together, in tokens.
    """

    def __init__(self, length: int):
        super().__init__()
        self._length = length
        self._room: list[torch.Tensor] = []  # keys, values: each (rows, heads, length, width)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (rows, heads, new tokens, width); returns all keys and all values until now."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [one.new_empty(*one.shape[:2], self._length, one.shape[3]) for one in new]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for room, one in zip(self._room, new, strict=True):
            room[:, :, start:end] = one
        return self._show(end)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only."""
        self._room = [room[indices] for room in self._room]
        self._show(self.get_seq_length())

    def _show(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def decode(
    model: Any, input_ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
    **state: Any,
) -> torch.Tensor:  # fmt: skip
    """A `custom_generate` of transformers for greedy decoding.

    Returns:
        Prompts and answers, (rows, length). What follows a row's first end token has no meaning.
    """
    limit, ends = generation_config.max_new_tokens, generation_config._eos_token_tensor
    answers = input_ids.new_full((len(input_ids), limit), int(generation_config._pad_token_tensor))
    prompts, rows = input_ids, torch.arange(len(input_ids), device=input_ids.device)
    running = torch.ones_like(rows, dtype=torch.bool)
    leaves = _give_room(state.get("past_key_values"), input_ids.shape[1] + limit)
    wait = 1 if input_ids.device.type == "cpu" else _WAIT
    output = model._prefill(input_ids, generation_config, state)
    with model._optimize_model_for_decode():
        for step in range(1, limit + 1):
            state = model._update_model_kwargs_for_generation(output, state)
            scores = logits_processor(input_ids, output.logits[:, -1].to(copy=True, dtype=torch.float32))
            tokens = scores.argmax(-1)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            answers[rows, step - 1] = tokens
            running &= ~torch.isin(tokens, ends)
            if step == limit or (step % wait == 0 and not running.any()):
                break
            if leaves and step % wait == 0 and int(running.sum()) <= _LEAVE_AT * len(rows):
                kept = running.nonzero()[:, 0]
                rows, running, input_ids = rows[kept], running[kept], input_ids[kept]
                state = _select(state, kept)
            new = 1 if state["use_cache"] else None
            output = None  # its logits may be large
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, **state)
            output = model(**inputs, return_dict=True)
    return torch.cat([prompts, answers[:, :step]], dim=1)


def _give_room(cache: Any, length: int) -> bool:
    """Allocate a cache's layers that see everything once; returns whether rows can leave the cache."""
    if type(cache) is not DynamicCache or not cache.layers:
        return False
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return False  # states of another kind
    cache.layers = [RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return True


def _select(state: dict[str, Any], kept: torch.Tensor) -> dict[str, Any]:
    """What generation carries from token to token, for the rows that are `kept` of it."""
    state["past_key_values"].batch_select_indices(kept)
    by_row = ("attention_mask", "position_ids", "token_type_ids")
    return {name: value[kept] if name in by_row and value is not None else value for name, value in state.items()}
