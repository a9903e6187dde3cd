"""The loss on supervised positions equals the plain loss, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.worker import data
from bench.worker.device import Device
from bench.worker.loss import SupervisedHead, example_losses, mean_loss

ROWS = [
    {"prompt_ids": [5, 6, 7, 8], "answer_ids": [9, 10, 1]},
    {"prompt_ids": [11], "answer_ids": [12, 1]},
    {"prompt_ids": [3, 4, 5, 6, 7, 8], "answer_ids": [1]},
]


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )


def test_value_and_gradient_equal_the_plain_loss(model: LlamaForCausalLM) -> None:
    batch = data.collate(ROWS, pad_id=0)
    plain = model(**batch).loss  # transformers' own: the mean over labelled tokens
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    losses, _ = SupervisedHead(model).token_losses(model, batch)
    losses.mean().backward()

    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), plain, rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-8)


def test_other_callers_still_get_every_position(model: LlamaForCausalLM) -> None:
    SupervisedHead(model)
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)


def test_losses_know_their_row(model: LlamaForCausalLM) -> None:
    _, rows = SupervisedHead(model).token_losses(model, data.collate(ROWS, pad_id=0))
    assert rows.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_heldout_loss_does_not_depend_on_the_batches(model: LlamaForCausalLM, batch_size: int) -> None:
    device = Device("cpu", torch.float32, "sdpa", "off")
    with torch.no_grad():
        losses = example_losses(model, SupervisedHead(model), ROWS, batch_size=batch_size, pad_id=0, device=device)
        alone, _ = SupervisedHead(model).token_losses(model, data.collate(ROWS[:1], pad_id=0))
    assert [tokens for _, tokens in losses] == [3, 2, 1]
    assert losses[0][0] == pytest.approx(alone.sum().item(), rel=1e-5)
    assert mean_loss(losses) == pytest.approx(sum(nats for nats, _ in losses) / 6)


def test_mean_loss_weighs_tokens_not_examples() -> None:
    assert mean_loss([(1.0, 1), (9.0, 9)]) == 1.0
    assert mean_loss([(4.0, 1), (0.0, 3)]) == 1.0  # a mean of means would say 2
