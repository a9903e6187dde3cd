"""Rows that leave their batch, and a cache that is allocated once, change no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from bench.worker import decode

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 24, "initializer_range": 0.5,
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)).eval()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_answers_are_those_of_transformers(kind: str) -> None:
    model, seen = model_of(kind), []
    ids = torch.randint(3, 24, (8, 9))
    mask = torch.ones_like(ids)
    for row in range(4):  # padding on the left
        ids[row, : row + 1] = mask[row, : row + 1] = 0
    how: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    endless = model.generate(**how, generation_config=GenerationConfig(max_new_tokens=20, pad_token_id=0))
    ends = endless[:3, 13]
    how["generation_config"] = GenerationConfig(max_new_tokens=20, eos_token_id=ends.tolist(), pad_token_id=0)
    expected = model.generate(**how)
    model.register_forward_pre_hook(lambda m, a, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True)
    found = model.generate(**how, custom_generate=decode.decode)
    for a, b in zip(expected[:, 9:], found[:, 9:], strict=True):
        length = int(torch.isin(a, ends).nonzero()[0]) + 1 if torch.isin(a, ends).any() else len(a)
        assert a[:length].tolist() == b[:length].tolist()
    assert seen[0] == 8
    assert seen[-1] < 8  # rows left


def test_a_roomy_layer_holds_what_a_growing_one_holds() -> None:
    roomy, growing = decode.RoomyLayer(5), decode.DynamicLayer()
    for tokens in (3, 1, 1):
        new = torch.randn(4, 2, tokens, 8), torch.randn(4, 2, tokens, 6)
        for one, other in zip(roomy.update(*new), growing.update(*new), strict=True):
            assert torch.equal(one, other)
    for layer in (roomy, growing):
        layer.batch_select_indices(torch.tensor([2, 0]))
    assert torch.equal(roomy.keys, growing.keys)
    assert torch.equal(roomy.values, growing.values)
