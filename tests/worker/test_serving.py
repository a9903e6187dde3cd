"""Serving a tuned model: its forms are what they say, are timed alike, and are set against what was evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import weight_files
from bench.planner import disk
from bench.record import ServeResult
from bench.worker import device, evaluate, methods, models, prepare, serve, train
from bench.worker.loss import inference
from bench.worker.main import Context, Progress
from bench.worker.serve import FirstToken, Origin, answer, build, load

SERVED = (
    "serve=quick", "serve.prompt_tokens=[8]", "serve.batch_sizes=[1,2]", "serve.new_tokens=3", "serve.repetitions=2",
    "serve.fidelity_examples=null", "serve.adapters=[1,2]",
)  # fmt: skip
LARGE_STEPS = ("method.learning_rate=0.01", "hardware.compute_dtype=bfloat16")  # adapters far from their start
FORMS = {
    "base": ["base"],
    "base_4bit": ["base_nf4"],
    "full": ["base", "tuned", "tuned_nf4"],
    "lora": ["base", "unmerged", "merged", "merged_nf4"],
    "qlora": [
        "base", "base_nf4", "unmerged", "merged", "merged_original", "merged_nf4", "merged_original_nf4",
    ],
}  # fmt: skip


def ready_to_serve(smoke, tmp_path: Path, *overrides: str) -> tuple[Context, Origin]:
    """A run that is trained and evaluated, in this process."""
    (config,) = compose(smoke(*SERVED, *overrides), multirun=False)
    folder = tmp_path / "run"
    folder.mkdir()
    prepare.run(Context(folder, config, Progress(folder, "prepare")))
    if config.method.trains != "nothing":
        train.run(Context(folder, config, Progress(folder, "train")))
    evaluate.run(Context(folder, config, Progress(folder, "evaluate")))
    return Context(folder, config, Progress(folder, "serve")), origin(config)


def origin(config: RunConfig) -> Origin:
    cache = Path(config.paths.cache)
    source = models.locate(config.model, cache)
    weights = Context(Path("unused"), config, Progress(Path("unused"), "serve")).weights
    return Origin(config, source, weights, device.resolve(config), models.load_tokenizer(config.model, source))


def form_named(at: Origin, name: str):
    return next(form for form in methods.served_forms(at.config.method) if form.name == name)


@pytest.mark.parametrize("method", ["base_4bit", "full", "lora", "qlora"])
def test_every_form_is_timed_and_set_against_the_evaluated_one(smoke, tmp_path: Path, method: str) -> None:
    extra = LARGE_STEPS if method != "base_4bit" else LARGE_STEPS[1:]
    context, _ = ready_to_serve(smoke, tmp_path, f"method={method}", *extra)
    result = serve.run(context)
    check_latency(result, FORMS[method])
    if method == "base_4bit":
        assert (result.fidelity, result.adapters) == ([], None)
        return
    check_fidelity(result, FORMS[method])
    assert (result.adapters is not None) == ("lora" in method)
    if result.adapters is not None:
        check_adapters(result)


def check_latency(result: ServeResult, names: list[str]) -> None:
    assert [form.form for form in result.forms] == names
    timed = [form for form in result.forms if form.timed_as == form.form]
    assert {form.timed_as for form in result.forms} <= {form.form for form in timed}
    assert len(result.generations) == len(timed) * 2 * 2  # repetitions, batches
    assert all(0 < g.first_token_seconds < g.total_seconds for g in result.generations)
    for form in timed:
        assert form.disk_bytes > 0
        assert form.weights_bytes > 0
        assert len(form.load_seconds) == 2
    small = [form for form in timed if form.form.endswith("nf4")]
    assert all(form.weights_bytes < result.forms[0].weights_bytes for form in small if len(names) > 1)
    phases = {entry.phase for entry in result.memory}
    assert {f"{what} {form.form}" for what in ("load", "serve") for form in timed} <= phases
    assert result.settings["new_tokens"] == 3
    assert result.environment.cpus is not None


def check_fidelity(result: ServeResult, names: list[str]) -> None:
    reference, *others = result.fidelity
    assert [entry.form for entry in result.fidelity] == [name for name in names if not name.startswith("base")]
    assert reference.logits is None
    assert reference.examples == 4
    for entry in others:
        assert entry.logits.positions > 0
        assert 0 <= entry.logits.mean <= entry.logits.largest
        assert 0 <= entry.equal_answers <= 4
        assert set(entry.scores) == {"numeric", "exact_match"}
    by_form = {entry.form: entry for entry in others}
    if "merged" in by_form:  # rounding once does less than storing in 4 bits does
        assert by_form["merged"].logits.mean < by_form["merged_nf4"].logits.mean
        assert by_form["merged"].logits.mean < 0.05


def check_adapters(result: ServeResult) -> None:
    many = result.adapters
    assert set(many.held_bytes) == {"1", "2"}
    assert len(many.load_seconds) == len(many.activate_seconds) == 2
    assert 0 < many.adapter_bytes < many.copy_bytes
    assert {(g.way, g.adapters, g.batch_size) for g in many.generations} == {
        ("mixed", 1, 2), ("mixed", 2, 2), ("swapped", 1, 2), ("swapped", 2, 1),
    }  # fmt: skip


@pytest.mark.parametrize(("method", "name"), [("lora", "merged"), ("qlora", "merged"), ("qlora", "merged_original")])
def test_merging_adds_in_fp32_and_rounds_once(smoke, tmp_path: Path, method: str, name: str) -> None:
    _, at = ready_to_serve(smoke, tmp_path, f"method={method}", *LARGE_STEPS)
    form = form_named(at, name)
    build(form, at)
    layer = "model.layers.0.mlp.down_proj.weight"
    merged = load(form, at).get_parameter(layer)
    beside = load(form_named(at, "unmerged"), at)  # the adapter as it was saved, in bf16 here
    base = load(form_named(at, "base"), at)
    if name == "merged" and method == "qlora":
        base = load(form_named(at, "base_nf4"), at, as_evaluated=True)
    from safetensors.torch import load_file

    saved = load_file(at.weights / "adapter_model.safetensors")
    a, b = (next(t for key, t in saved.items() if f"layers.0.mlp.down_proj.lora_{x}" in key) for x in "AB")
    scaling = at.config.method.adapter.alpha / at.config.method.adapter.rank
    expected = (base.get_parameter(layer).float() + b @ a * scaling).bfloat16()
    assert a.dtype is torch.float32
    assert torch.equal(merged, expected)
    assert not torch.equal(merged, base.get_parameter(layer))
    assert beside.get_base_model() is not None


def test_a_4_bit_form_answers_as_its_dequantized_weights_do(smoke, tmp_path: Path) -> None:
    _, at = ready_to_serve(smoke, tmp_path, "method=qlora", *LARGE_STEPS)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for name in ("unmerged", "merged_nf4"):
        form = form_named(at, name)
        build(form, at)
        small, large = load(form, at), load(form, at, as_evaluated=True)
        kinds = {type(module).__name__ for module in small.modules()}
        assert "Linear4bit" in kinds
        assert "Linear4bit" not in {type(module).__name__ for module in large.modules()}
        with inference(small, at.device), inference(large, at.device):
            torch.testing.assert_close(small(ids).logits, large(ids).logits, rtol=0, atol=0.02)


def test_forms_are_built_once_and_can_be_served_by_others(smoke, tmp_path: Path) -> None:
    _, at = ready_to_serve(smoke, tmp_path, "method=lora", *LARGE_STEPS)
    form = form_named(at, "merged_nf4")
    folder = build(form, at)
    (written,) = weight_files(folder)
    before = written.stat().st_mtime_ns
    assert build(form, at) == folder
    assert written.stat().st_mtime_ns == before
    from transformers import AutoConfig, AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder).chat_template == at.tokenizer.chat_template
    stored = AutoConfig.from_pretrained(folder).quantization_config
    quantization = stored if isinstance(stored, dict) else BitsAndBytesConfig.to_dict(stored)
    assert quantization["bnb_4bit_quant_type"] == "nf4"


def test_the_quantized_base_is_stored_once(smoke, tmp_path: Path) -> None:
    (config,) = compose(smoke("method=qlora", f"paths.cache={tmp_path / 'cache'}"), multirun=False)
    at = origin(config)
    written = []
    for _ in range(2):
        load(form_named(at, "base_nf4"), at)
        written.append([path.stat().st_mtime_ns for path in (tmp_path / "cache" / "quantized").glob("*/*.safetensors")])
    assert written[0] == written[1] != []


def test_answers_have_the_length_that_was_asked_for(smoke, tmp_path: Path) -> None:
    (config,) = compose(smoke("method=base"), multirun=False)
    at = origin(config)
    model = load(form_named(at, "base"), at)
    pad_id = at.tokenizer.pad_token_id
    prompt = torch.tensor([[5, 6, 7]])
    with inference(model, at.device):
        natural = model(prompt).logits[0, -1].argmax().item()
        model.generation_config.eos_token_id = natural  # it would end at once
        seconds = iter(range(100))
        first = FirstToken(lambda: float(next(seconds)))
        assert answer(model, prompt, 4, pad_id, streamer=first).shape == (1, 4)
    assert first.at_seconds == 0.0
    assert next(seconds) == 1  # marked once: when the first token was there


def test_logit_differences_by_hand() -> None:
    own, reference = torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[0.5, 2.0], [1.0, 3.0]])
    found = serve.logit_difference(own, reference)
    assert (found.positions, found.largest, found.mean, found.same_token_share) == (2, 3.0, 0.875, 0.5)
    broken = serve.logit_difference(torch.tensor([[torch.nan, 0.0]]), torch.tensor([[0.0, 0.0]]))
    assert (broken.largest, broken.mean) == (None, None)


def test_the_weights_of_a_folder_are_those_that_its_index_names(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    assert len(weight_files(tmp_path)) == 3
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert [path.name for path in weight_files(tmp_path)] == ["model-1.safetensors"]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_disk_must_hold_the_forms_that_are_built(smoke, method: str) -> None:
    overrides = smoke(f"method={method}", "serve=quick", "model.parameters=1000000000")
    (config,) = compose(overrides, multirun=False)
    built = [form for form in methods.served_forms(config.method) if form.is_built]
    expected = sum(1e9 * (disk.BYTES_4_BIT if form.is_quantized else disk.BYTES_16_BIT) for form in built)
    (need,) = [need for need in disk.needed([config]) if need.what == "served forms of one run"]
    assert need.size_bytes == pytest.approx(expected)
