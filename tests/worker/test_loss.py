"""The loss on supervised positions equals the plain loss, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from bench.worker import data, loss
from bench.worker.device import Device
from bench.worker.loss import SupervisedHead, example_losses, mean_loss

ROWS = [
    {"prompt_ids": [5, 6, 7, 8], "answer_ids": [9, 10, 1]},
    {"prompt_ids": [11], "answer_ids": [12, 1]},
    {"prompt_ids": [3, 4, 5, 6, 7, 8], "answer_ids": [1]},
]


SIZE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE))


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
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", ["head", "tied head", "body"])
def test_chunks_have_the_value_and_the_gradients_of_the_whole(monkeypatch, dtype: torch.dtype, trained: str) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 2 * 64)  # two positions at a time: the last chunk is not full
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=trained == "tied head"))
    model.lm_head.weight.requires_grad_(trained != "body")
    batch = data.collate(ROWS, pad_id=0)
    found = {}
    for whole in (True, False):
        head = SupervisedHead(model, whole=whole)
        assert head._in_chunks is not whole
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            losses, _ = head.token_losses(model, batch)
        (2 * losses.sum() / 7).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[whole] = losses.detach(), gradients
        model.zero_grad()
    torch.testing.assert_close(found[False][0], found[True][0], rtol=1e-5, atol=1e-6)
    assert found[False][1].keys() == found[True][1].keys()
    for name, gradient in found[True][1].items():
        apart = (found[False][1][name] - gradient).norm() / gradient.norm()
        assert apart < (1e-6 if dtype is torch.float32 else 0.01), name


def test_weighted_losses_of_a_trained_head_are_refused(model: LlamaForCausalLM) -> None:
    losses, _ = SupervisedHead(model).token_losses(model, data.collate(ROWS, pad_id=0))
    with pytest.raises(RuntimeError, match="summed or averaged, not weighted"):
        (losses * torch.arange(6)).sum().backward()


def test_a_batch_without_labels_changes_nothing(model: LlamaForCausalLM) -> None:
    losses, _ = SupervisedHead(model).token_losses(model, data.collate([{"prompt_ids": [5], "answer_ids": []}], 0))
    losses.sum().backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_capped_logits_are_taken_whole() -> None:
    settings = {**SIZE, "head_dim": 8, "attn_implementation": "eager"}
    assert not SupervisedHead(Gemma2ForCausalLM(Gemma2Config(**settings)))._in_chunks
