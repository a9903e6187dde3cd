"""Attention as products equals PyTorch's, in value and gradients, for every kind of mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from bench.worker import attention
from bench.worker.attention import PRODUCTS, faster_on_cpu, use_products

SIZE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
IDS = torch.arange(24).view(2, 12) % 60 + 2


def llama(key_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=key_heads))


def windowed() -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=4))


def outcome(model, **inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False, **inputs).logits
    (logits.tanh() * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters()]


RIGHT = torch.ones(2, 12, dtype=torch.long)
RIGHT[1, 7:] = 0
PACKED = torch.tensor([[*range(5), *range(7)], [*range(12)]])
INPUTS = {
    "no mask": {},
    "padding": {"attention_mask": RIGHT},
    "packed": {"position_ids": PACKED},
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("make", [lambda: llama(4), lambda: llama(2), windowed], ids=["heads", "grouped", "window"])
def test_logits_and_gradients_equal_those_of_sdpa(make, inputs: dict) -> None:
    model = make()
    logits, gradients = outcome(model, **inputs)
    assert use_products(model)
    assert model.config._attn_implementation == PRODUCTS
    ours, our_gradients = outcome(model, **inputs)
    seen = inputs.get("attention_mask", torch.ones(2, 12)).bool()
    torch.testing.assert_close(ours[seen], logits[seen], rtol=1e-5, atol=1e-5)
    if "attention_mask" not in inputs:  # there padded positions add to the sum, and may see anything
        for one, other in zip(our_gradients, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_a_compiler_sees_is_what_is_computed_by_hand() -> None:
    query, key, value = (torch.randn(2, heads, 6, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    given = (query, key, value)
    plain = torch.autograd.grad(attention._attend(*given, mask, 0.3).square().sum(), given)
    by_hand = torch.autograd.grad(attention._Attention.apply(*given, mask, 0.3).square().sum(), given)
    for one, other in zip(plain, by_hand, strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_of_padding_alone_gives_numbers() -> None:
    model = llama(2)
    use_products(model)
    _, gradients = outcome(model, attention_mask=torch.tensor([[1] * 12, [0] * 12]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_long_texts_single_tokens_and_dropout_stay_with_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given):
        raise AssertionError("products")

    monkeypatch.setattr(attention._Attention, "apply", refuse)
    model = llama(2)
    model.set_attn_implementation(PRODUCTS)
    model(input_ids=torch.full((1, attention.LONGEST_TOKENS + 1), 5))
    model(input_ids=torch.full((1, 1), 5))
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.train()(input_ids=IDS)
    with pytest.raises(AssertionError, match="products"):
        model.eval()(input_ids=IDS)


def test_a_model_with_attention_of_its_own_keeps_it() -> None:
    model = llama(2)
    model.set_attn_implementation("eager")
    assert not use_products(model)
    assert model.config._attn_implementation == "eager"


def test_the_choice_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = [{"sdpa": 1.2, PRODUCTS: 1.0}, {"sdpa": 1.05, PRODUCTS: 1.0}, {"sdpa": 1.0, PRODUCTS: 2.0}]
    monkeypatch.setattr(attention, "_measured_seconds", lambda dtype, compiled: measured.pop(0))
    assert faster_on_cpu(torch.float32, True, "one", tmp_path) == PRODUCTS
    assert faster_on_cpu(torch.float32, True, "one", tmp_path) == PRODUCTS
    assert faster_on_cpu(torch.float32, True, "another", tmp_path) == "sdpa"
    assert faster_on_cpu(torch.float32, False, "one", tmp_path) == "sdpa"
    assert not measured


def test_it_is_known_to_transformers() -> None:
    assert AttentionInterface()[PRODUCTS] is attention.attention
