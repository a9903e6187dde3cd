"""The divergence from the base: nothing against itself, exact where nothing is lumped, a lower bound where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.compose import compose
from bench.record import KL_METRIC
from bench.worker import device, divergence, models
from bench.worker import loss as heldout


@pytest.fixture
def setting(smoke):
    """(config, source, tokenizer, device) of the tiny model, with two short texts of each kind."""
    (config,) = compose(smoke("method=base", "hardware.compute_dtype=float32"), multirun=False)
    source = models.locate(config.model, Path(config.paths.cache))
    return config, source, models.load_tokenizer(config.model, source), device.resolve(config)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch) -> None:
    everything = divergence.general_texts
    monkeypatch.setattr(divergence, "general_texts", lambda tokenizer: everything(tokenizer)[30:34])


def moved(setting) -> torch.nn.Module:
    config, source, _, _ = setting
    model = models.load_weights(config.model, source, dtype=torch.float32, device_map={"": "cpu"})
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    return model


def measured(setting, model: torch.nn.Module, reference: divergence.Reference) -> divergence.Divergence:
    with heldout.inference(model, setting[3]):
        return divergence.divergence(model, reference, setting[3])


def exact(setting, model: torch.nn.Module) -> list[float]:
    """By torch's own function over the whole vocabulary, one text at a time."""
    config, source, tokenizer, _ = setting
    base = models.load_weights(config.model, source, dtype=torch.float32, device_map={"": "cpu"}).eval()
    values = []
    for text in divergence.general_texts(tokenizer):
        ids = torch.tensor([text.token_ids])
        with torch.no_grad():
            of_base, of_model = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (base, model.eval()))
        kl = torch.nn.functional.kl_div(of_model, of_base, log_target=True, reduction="none").sum(-1)
        values.append(float(kl.mean()))
    return values


def test_the_base_against_itself_is_nothing(setting) -> None:
    config, source, tokenizer, resolved = setting
    base = models.load_weights(config.model, source, dtype=torch.float32, device_map={"": "cpu"})
    outcome = measured(setting, base, divergence.reference_of(config, source, tokenizer, resolved))
    assert [item.score for item in outcome.items] == [0.0] * 4
    assert [(task.task, task.metric, task.value) for task in outcome.tasks] == [
        ("prose_kl", KL_METRIC, 0.0),
        ("code_kl", KL_METRIC, 0.0),
    ]


def test_it_is_the_divergence_where_nothing_is_lumped(setting, monkeypatch) -> None:
    monkeypatch.setattr(divergence, "TOP", 10**9)
    config, source, tokenizer, resolved = setting
    model = moved(setting)
    outcome = measured(setting, model, divergence.reference_of(config, source, tokenizer, resolved))
    assert [item.score for item in outcome.items] == pytest.approx(exact(setting, model), rel=1e-4)


def test_lumping_lowers_it(setting, monkeypatch) -> None:
    monkeypatch.setattr(divergence, "TOP", 8)
    config, source, tokenizer, resolved = setting
    model = moved(setting)
    outcome = measured(setting, model, divergence.reference_of(config, source, tokenizer, resolved))
    assert all(0 < item.score <= whole for item, whole in zip(outcome.items, exact(setting, model), strict=True))


def test_the_reference_is_made_once(setting, monkeypatch) -> None:
    config, source, tokenizer, resolved = setting
    first = divergence.reference_of(config, source, tokenizer, resolved)
    monkeypatch.setattr(divergence, "load_weights", lambda *_, **__: pytest.fail("loaded again"))
    second = divergence.reference_of(config, source, tokenizer, resolved)
    assert torch.equal(first.top_ids, second.top_ids)
    assert torch.equal(first.rest_log_probability, second.rest_log_probability)
