"""Every architecture under every method: trained as plain transformers and PEFT train it, kept, merged, served.

What cannot be is refused by name. Two layers of width 64, random weights, a byte tokenizer; all in this process.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder, data_folder
from bench.mistakes import ConfigurationError
from bench.worker import data, methods, models, reach, serve
from bench.worker import prepare as prepare_stage
from bench.worker import train as train_stage
from bench.worker.device import Device
from bench.worker.instruments.tokens import linear_costs, matrices
from bench.worker.loss import SupervisedHead, alike, example_losses, mean_loss
from bench.worker.main import Context, Progress
from bench.worker.scoring import PrefixScorer, takes_branches
from tests.worker.architectures import CONFIGS, make

STEPS, BATCH = 4, 4
FP32 = Device("cpu", torch.float32, "sdpa", "off")
BF16 = Device("cpu", torch.bfloat16, "sdpa", "off")
EAGER = ("gemma2", "mamba", "bloom")  # transformers has no other attention for these
TARGETS = {"mamba": ["in_proj", "x_proj"]}  # of others: all linear layers
NOT_AT_ALL = [("mamba", "qlora")]  # refused
RUNS: dict[tuple[str, str], tuple[RunConfig, Any, list[float]]] = {}
ROWS = [{"prompt_ids": list(range(5, 5 + size)), "answer_ids": [9] * 3} for size in (30, 11, 4)]
SOUND = [pair for pair in itertools.product(CONFIGS, ("full", "lora", "qlora")) if pair not in NOT_AT_ALL]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path):
    """Returns a function from an architecture's name to its folder, which is written once."""
    (config,) = compose(["model=tiny-random"], multirun=False)
    tokenizer = models.load_tokenizer(config.model, models.locate(config.model, shared_cache))
    below = tmp_path_factory.mktemp("architectures")

    def folder(name: str) -> Path:
        there = below / name
        return there if there.exists() else make(name, there, tokenizer)

    return folder


@pytest.fixture
def configured(smoke, folders):
    """Returns a function from an architecture, a method and overrides to the description of a run."""

    def configure(name: str, method: str, *overrides: str) -> RunConfig:
        targets = TARGETS.get(name) if method != "full" else None
        target = [f"method.adapter.target_modules=[{','.join(targets)}]"] if targets else []
        attention = f"hardware.attention={'eager' if name in EAGER else 'sdpa'}"
        where = [attention, "model=folder", f"model.location={folders(name)}", f"model.name={name}", "train.epochs=8"]
        budget = [
            "train.schedule=constant_with_warmup",
            "train.warmup_fraction=0",
            "method.learning_rate=1e-3",
            f"train.max_steps={STEPS}",
            f"train.batch_size={BATCH}",
            "train.micro_batch=2",
        ]
        (config,) = compose(smoke(f"method={method}", *where, *budget, *target, *overrides), multirun=False)
        return config

    return configure


def _inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def trained(config: RunConfig, folder: Path) -> tuple[Any, list[float]]:
    """(the result of training, the loss of every step)."""
    folder.mkdir(exist_ok=True)
    context = Context(folder, config, Progress(folder, "train"))
    prepare_stage.fetch(context)
    result = train_stage.run(context)
    return result, [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def plain(config: RunConfig) -> Any:
    """The model as transformers and PEFT make it, without this project's code."""
    method, options = config.method, {}
    if method.quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        config.model.location, dtype=torch.float32, device_map={"": "cpu"},
        attn_implementation=config.hardware.attention, **options,
    )  # fmt: skip
    set_seed(config.seed)
    if method.adapter is None:
        return model.train()
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=method.adapter.target_modules,
        fan_in_fan_out=config.model.name == "gpt2" and method.quantization is None,
    )  # fmt: skip
    return get_peft_model(model, lora).train()


def plain_losses(config: RunConfig) -> list[float]:
    """Whole batches, transformers' own loss over all positions, no accumulation."""
    rows = data.load_prepared(data_folder(config)).train
    lengths = [data.row_length(row) for row in rows]
    order = data.training_order(lengths, seed=config.seed, epochs=8, batch_size=BATCH, max_steps=STEPS)
    model = plain(config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.method.learning_rate, weight_decay=0)
    losses = []
    for step in range(STEPS):
        batch = data.collate([rows[i] for i in order[BATCH * step :][:BATCH]], pad_id=0)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, config.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def in_fp32(configured, tmp_path_factory: pytest.TempPathFactory):
    """Returns a function from an architecture and a method to (config, result, losses) of a run, made once."""

    def run(name: str, method: str) -> tuple[RunConfig, Any, list[float]]:
        if (name, method) not in RUNS:
            config = configured(name, method, "hardware.compute_dtype=float32")
            RUNS[name, method] = config, *trained(config, tmp_path_factory.mktemp("run"))
        return RUNS[name, method]

    return run


@pytest.mark.parametrize(("name", "method"), SOUND)
def test_fp32_losses_are_those_of_transformers_and_peft(in_fp32, name: str, method: str) -> None:
    config, result, losses = in_fp32(name, method)
    assert losses == pytest.approx(plain_losses(config), rel=2e-5)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-3)
    saved_is_trained(config, result.heldout[-1].loss)
    merged_is_beside(config)


def saved_is_trained(config: RunConfig, loss: float) -> None:
    """The weights that were saved, loaded again, have the held-out loss that training ended with."""
    how = {"attn_implementation": config.hardware.attention}
    model = methods.load_trained(config, config.model.location, artifact_folder(config), "cpu", torch.float32, **how)
    rows = list(data.load_prepared(data_folder(config)).validation)
    with torch.no_grad():
        losses = example_losses(model, SupervisedHead(model), rows, batch_size=4, pad_id=0, device=FP32)
    tolerance = 1e-5 if config.method.adapter else 2e-3  # all weights are shipped in bf16
    assert mean_loss(losses) == pytest.approx(loss, rel=tolerance)


def merged_is_beside(config: RunConfig) -> None:
    """Every form in which the result is served predicts what the evaluated one does, up to the rounding of bf16."""
    tokenizer = models.load_tokenizer(config.model, config.model.location)
    at = serve.Origin(config, config.model.location, artifact_folder(config), FP32, tokenizer)
    ids = torch.arange(5, 45)[None]
    logits = {}
    for form in methods.served_forms(config.method):
        if form.base is not None and form.scheme is None and form.name != "merged_original":
            serve.build(form, at)
            model = serve.load(form, at, as_evaluated=True)
            for router in (module for module in model.modules() if hasattr(module, "top_k")):
                router.top_k = model.config.num_local_experts  # no token is sent elsewhere by rounding
            with torch.no_grad():
                logits[form.name] = model(input_ids=ids).logits.float()
    evaluated, *others = logits.values()
    assert len(others) == (config.method.adapter is not None)
    for other in others:
        assert all(alike(*pair) for pair in zip(other[0], evaluated[0], strict=True))


@pytest.mark.parametrize(("name", "method"), [*[p for p in SOUND if p[1] != "full"], ("mixtral", "full")])
def test_16_bit_losses_follow_those_of_fp32(in_fp32, configured, tmp_path: Path, name: str, method: str) -> None:
    """Without compilation, where an adapter's branch is added in fp32: mixed dtypes must get through every layer."""
    config = configured(name, method, "hardware.compute_dtype=bfloat16", "train.compile=off")
    assert trained(config, tmp_path / "run")[1] == pytest.approx(in_fp32(name, method)[2], rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_master_weights_leave_the_grid_wherever_products_round(configured, name: str) -> None:
    """Experts and Conv1D too: the first pass under autocast, which rounds them back, is the untouched base's."""
    config = configured(name, "full")
    base = methods.load_base(config, config.model.location, "cpu", torch.bfloat16)
    model = methods.make_trainable(base, config.method, 0)
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), BF16.autocast():
        untouched = model(ids).logits
        methods.leave_bf16_grid(model, config, torch.bfloat16)
        assert torch.equal(model(ids).logits, untouched)
    table = model.get_input_embeddings().weight
    for name, _, weight in matrices(model):
        assert weight is table or not torch.equal(weight, before[weight]), name


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_predictions_are_those_alone_or_packing_is_refused(configured, name: str) -> None:
    config = configured(name, "lora", "train.packing=true")
    model = methods.load_base(config, config.model.location, "cpu", torch.float32)
    packed, alone = (model(**_inputs(data.pack(rows)), use_cache=False).logits[0, -7:] for rows in (ROWS, ROWS[2:]))
    if name in ("opt", "mamba", "bloom"):
        assert not alike(packed, alone)
        with pytest.raises(
            ConfigurationError, match=f"train.packing: {name} does not keep the examples of a row apart"
        ):
            reach.check_loaded(model, config, FP32)
    else:
        torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4)
        reach.check_loaded(model, config, FP32)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_suite_scores_as_lm_eval_does(configured, name: str) -> None:
    """Sequences shorter and longer than a local window of 24 tokens, in groups that share most of their tokens."""
    config = configured(name, "lora")
    model = methods.load_base(config, config.model.location, "cpu", torch.float32)
    tokenizer = models.load_tokenizer(config.model, config.model.location)
    options = {
        "pretrained": model,
        "tokenizer": tokenizer,
        "batch_size": 4,
        "max_length": 100,
        "softmax_dtype": "float32",
    }
    contexts = [list(range(5, 5 + size)) for size in (4, 12, 20, 60)]
    requests = [(None, context, [*ending, 7]) for context in contexts for ending in ([50, 60], [51], [52, 61, 62])]
    ours, theirs = (
        scorer(**options)._loglikelihood_tokens(requests, disable_tqdm=True) for scorer in (PrefixScorer, HFLM)
    )
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], rel=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert takes_branches(model) == takes_branches(model.bfloat16()) == (name not in EAGER)


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_those_that_are_counted(configured, name: str) -> None:
    """Against torch's counter, forward and backward, attention aside; of experts those that tokens go through."""
    config = configured(name, "full")
    model = methods.load_base(config, config.model.location, "cpu", torch.float32)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # grouped products are not counted
    ids = torch.arange(5, 37)[None]
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    costs = linear_costs(model)
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for kind, flops in counted.items() if str(kind) in ("aten.mm", "aten.addmm"))
    assert 32 * (costs.per_token + costs.per_supervised_token) == pytest.approx(products, rel=0.05), counted


REFUSED = [
    ("llama", "lora", "[q_proj,v_porj]", r"no module is called 'v_porj' \(did you mean 'v_proj'\?\)"),
    ("llama", "lora", "[self_attn]", "Target module LlamaAttention; name others, as \\[down_proj,"),
    ("llama", "lora", "'.*q_pro'", "Target modules .*q_pro not found in the base model"),
    ("llama-tied", "lora", "[q_proj,lm_head]", "lm_head is tied to the model's other end"),
    ("llama-tied", "lora", "[embed_tokens]", "embed_tokens is tied to the model's other end"),
    ("mixtral", "lora", "[w1]", "w1 without also targeting w3"),
    ("mamba", "lora", "all-linear", r"'out_proj' is incompatible.*name others, as \[in_proj,x_proj\]"),
    ("mamba", "lora", "[in_proj,dt_proj]", "multiplies by the weights of dt_proj without calling this layer"),
    ("mamba", "qlora", "[in_proj]", "method.quantization: mamba multiplies by the weights of dt_proj"),
]


@pytest.mark.parametrize(("name", "method", "targets", "message"), REFUSED)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's, before we refuse
def test_targets_that_cannot_be_are_refused_by_name(configured, name, method, targets, message) -> None:
    config = configured(name, method, f"method.adapter.target_modules={targets}")
    with pytest.raises(ConfigurationError, match=message):
        reach.said(config, config.model.location)


@pytest.mark.parametrize("override", ["dropout=0.1", "use_dora=true", "init=pissa"])
def test_experts_take_no_such_adapter(configured, override: str) -> None:
    config = configured("mixtral", "lora", f"++method.adapter.{override}")
    with pytest.raises(ConfigurationError, match="experts"):
        reach.said(config, config.model.location)


def test_what_a_method_reaches_is_said(configured) -> None:
    config = configured("mixtral", "qlora")
    quantized, adapter, rounded = reach.said(config, config.model.location)
    assert quantized == (
        "quantization: nf4 for 10% of 255,424 parameters; the experts, 77%, stay in 16 bit, which bitsandbytes "
        "leaves them in"
    )
    assert adapter == (
        "adapter: on 14 modules (q_proj 2, k_proj 2, v_proj 2, o_proj 2, gate 2, down_proj 2, gate_up_proj 2) with 87% "
        "of 255,424 parameters; trains 123,008, 48.16% as many"
    )
    assert rounded.startswith("adapter: to gate, down_proj, gate_up_proj it is added in the weights' own dtype")
    base = methods.load_base(config, config.model.location, "cpu", torch.float32)
    assert (
        methods.parameters_quantized(base) == round(0.0962 * 255_424, -1)
        or methods.parameters_quantized(base) == 24_576
    )
    trained_too = methods.make_trainable(base, config.method, 0)
    assert sum(p.numel() for p in trained_too.parameters() if p.requires_grad) == 123_008


def test_a_young_adapter_on_experts_is_rounded_away_in_16_bit(configured) -> None:
    config = configured("mixtral", "lora")
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = models.load_weights(config.model, config.model.location, dtype=dtype, device_map={"": "cpu"})
        model = methods.make_trainable(base, config.method, 0)
        experts = base.model.layers[0].mlp.experts
        before = experts.get_param().detach().clone()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(1e-5)  # a first step of Adam at a small rate
        with torch.no_grad(), experts._activate_lora(["default"]):
            moved[dtype] = float((experts.get_param() != before).float().mean())
    assert moved[torch.float32] > 0.9
    assert moved[torch.bfloat16] < 0.2


def test_an_adapter_on_an_untied_head_and_table_merges(in_fp32, configured, tmp_path: Path) -> None:
    config = configured("llama", "lora", "hardware.compute_dtype=float32", "seed=1",
                        "method.adapter.target_modules=[q_proj,lm_head,embed_tokens]")  # fmt: skip
    result, _ = trained(config, tmp_path / "run")
    saved_is_trained(config, result.heldout[-1].loss)
    merged_is_beside(config)


CONTRADICTIONS = [
    ("dropout=1.0", "method.adapter.dropout: input should be less than 1"),
    ("target_modules=q_proj", r"'q_proj' is read as a pattern .* write \[q_proj\]"),
    ("target_modules=[]", "target_modules: empty"),
    ("target_modules=[q_proj,q_proj]", "names one twice"),
    ("init=orthogonal method.adapter.rank=3", "init=orthogonal needs an even one; given 3"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS)
def test_options_that_contradict_or_do_nothing_are_refused(configured, overrides: str, message: str) -> None:
    first, *more = overrides.split()
    with pytest.raises(ConfigurationError, match=message):
        configured("llama", "lora", f"++method.adapter.{first}", *more)
