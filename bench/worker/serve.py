"""The serving stage: what each form of a run's result costs to serve, and what merging and quantizing change.

It runs after the evaluation on finished weights and changes nothing that was measured before.

- Forms (`methods.served_forms`): base, adapter beside it, merged, merged and quantized. Merging adds the adapter's
  product in fp32 and rounds once; what is built lies in `forms/<form>` beside the weights, ready for any server.
- Latency: every form is loaded anew in each repetition and alone in memory, so its peak is its own; the order rotates,
  so that what slows the machine for a while falls on all of them. Answers have a fixed number of tokens.
- Fidelity: scores, loss and answers of each form on the test examples, and its logits against the evaluated form's.
- Adapters: many of them on one base, in one batch or swapped.

    >>> run(context).forms[2]
    ServedForm(form='merged', is_what='the original base with the adapter merged, 16-bit', ...)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.pytorch_utils import Conv1D

from bench.config import QuantizationConfig, RunConfig
from bench.identity import data_folder, make_once, weight_files
from bench.metrics import means
from bench.record import ServeResult
from bench.served import (
    AdapterGeneration,
    Adapters,
    Fidelity,
    Generation,
    LogitDifference,
    ServedAnswer,
    ServedForm,
    Way,
)
from bench.worker import data, device, methods, models, reach
from bench.worker.evaluate import answer_header, generate, score
from bench.worker.instruments.memory import Memory, quantization_constants, total_bytes
from bench.worker.instruments.tokens import IGNORED
from bench.worker.loss import SupervisedHead, example_losses, inference
from bench.worker.main import Context, write_lines
from bench.worker.methods import Form

WARM_UP_TOKENS = 2  # of one untimed answer to each kind of batch: buffers are allocated, kernels chosen
POSITIONS = 256  # whose logits are compared: 50 MB of fp32 with a vocabulary of 50,000
LOGIT_BATCH = 4  # examples


@dataclass(frozen=True)
class Origin:
    """The base, weights and tokenizer that a run's forms are made from."""

    config: RunConfig
    source: str  # of the base, from `models.locate`
    weights: Path  # what training wrote
    device: device.Device
    tokenizer: Any
    exported: Callable[[Origin], Any] | None = None  # reads what was exported, where that is judged

    def folder(self, form: Form) -> Path:
        """The folder of a built form."""
        return self.weights / "forms" / form.name

    def read(self, folder: Path | str, quantization: QuantizationConfig | None = None) -> Any:
        """The model in a folder, in the dtype in which it is stored or quantized while loading."""
        return methods.load_as_stored(
            self.config, str(folder), self.device.type, self.device.compute_dtype, quantization
        )


@dataclass(frozen=True)
class Serving:
    """What the parts of the stage share. `tokens`: of the test prompts one after the other, to cut prompts from."""

    context: Context
    at: Origin
    memory: Memory
    tokens: list[int]

    def prompts(self, length: int, size: int) -> torch.Tensor:
        """(size, length), the same for every form; the tokens are used again from the start when they run out."""
        tokens = itertools.islice(itertools.cycle(self.tokens), length * size)
        return torch.tensor(list(tokens)).reshape(size, length)

    def answer(self, model: Any, prompts: torch.Tensor, new_tokens: int, **more: Any) -> torch.Tensor:
        """`answer`, with the tokenizer's padding."""
        return answer(model, prompts, new_tokens, self.at.tokenizer.pad_token_id, **more)


def run(context: Context, forms: Sequence[Form] = (), exported: Callable[[Origin], Any] | None = None) -> ServeResult:
    """Build forms (the method's), time them in turn, compare with the evaluated one, share a base among adapters."""
    config, clock = context.config, context.clock
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    rows = list(data.load_prepared(data_folder(config)).test)
    context.progress.phase("build")
    memory.enter("build")
    source = models.locate(config.model, context.cache)
    at = Origin(config, source, context.weights, resolved, models.load_tokenizer(config.model, source), exported)
    serving = Serving(context, at, memory, [token for row in rows for token in row["prompt_ids"]])
    forms = forms or methods.served_forms(config.method)
    with clock.span("build"):
        for form in forms:
            build(form, at)
    context.load.start()
    with clock.span("latency"):
        served, generations = time_forms(serving, forms)
    environment = resolved.environment(context.load.read())
    fidelity = _fidelity(serving, forms, rows[: config.serve.fidelity_examples])
    adapters, skipped = _adapters(serving, forms, served)
    return ServeResult(
        settings=asdict(config.serve),
        forms=served,
        generations=generations,
        fidelity=fidelity,
        adapters=adapters,
        skipped=skipped,
        memory=list(memory.read().values()),
        spans_seconds=clock.read(),
        environment=environment,
        price_usd_per_hour=config.hardware.price_usd_per_hour,
    )


# ---------------------------------------------------------------------------------------------------------- forms
def build(form: Form, at: Origin) -> Path:
    """The folder that a form is loaded from; merged and requantized ones are written to it, unless they are whole."""
    if not form.is_built:
        return at.weights

    def write(target: Path) -> None:
        if form.before is not None and form.scheme is not None:
            model = at.read(build(form.before, at), form.scheme)
        else:
            from peft import PeftModel

            # PEFT keeps the adapter in fp32 here, so that each weight is added to in fp32 and rounded once.
            model = PeftModel.from_pretrained(_start(form, at), at.weights).merge_and_unload()
            model = model.to(torch.bfloat16)  # the form that is shipped, wherever it was computed
            _turn_back(model, reach.without_weights(at.config.model, at.source))
        model.save_pretrained(target)
        at.tokenizer.save_pretrained(target)

    return make_once(at.folder(form), write, Path(at.config.paths.cache))


def _turn_back(model: Any, like: Any) -> None:
    """Make Conv1D again of the linear layers that bitsandbytes made of them: files hold the weights their way round."""
    for name, layer in like.named_modules():
        if isinstance(layer, Conv1D) and isinstance(linear := model.get_submodule(name), torch.nn.Linear):
            layer.weight, layer.bias = torch.nn.Parameter(linear.weight.T.contiguous()), linear.bias
            model.set_submodule(name, layer)


def load(form: Form, at: Origin, *, as_evaluated: bool = False) -> Any:
    """The model in evaluation mode on the device.

    Args:
        as_evaluated: multiply 4-bit weights as 16-bit ones on a CPU, as the evaluation does: the same numbers, faster.
    """
    model = at.read(at.folder(form)) if form.is_built else _start(form, at)
    if as_evaluated and at.device.type == "cpu" and getattr(model, "is_loaded_in_4bit", False):
        model = model.dequantize(at.device.compute_dtype)
    if form.adapter == "beside":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, at.weights, autocast_adapter_dtype=False)
    models.take_rows_together(model)
    return model.eval()


def _start(form: Form, at: Origin) -> Any:
    """The weights that a form starts from, without its adapter."""
    if at.exported and form.start == "exported":
        return at.exported(at)
    if form.start in ("trained", "original"):
        return at.read(at.weights if form.start == "trained" else at.source)
    base = methods.load_base(at.config, at.source, at.device.type, at.device.compute_dtype)
    if form.start == "dequantized":
        base = base.dequantize(at.device.compute_dtype)
        base._weight_conversions = None  # how the 4-bit file was read; a 16-bit one is written otherwise
    return base


def disk_bytes(form: Form, model: Any, at: Origin) -> int | None:
    """Bytes of the weights that loading a form reads; None if the base's files cannot be found.

    Args:
        model: the loaded form, which knows the folder or the hub name that its base was read from.
    """
    name = str((model.get_base_model() if form.adapter == "beside" else model).name_or_path)
    try:
        folder = models.local_folder(at.config.model, name)
    except (OSError, ValueError):
        return None
    folders = [folder, at.weights] if form.adapter == "beside" else [folder]
    return sum(path.stat().st_size for part in folders for path in weight_files(part))


def weights_bytes(model: Any) -> int:
    """Bytes of a loaded model's tensors, quantization constants included; tied weights count once."""
    parameters = list(model.parameters())
    constants = [tensor for parameter in parameters for tensor in quantization_constants(parameter)]
    return total_bytes([*parameters, *constants, *model.buffers()])


# -------------------------------------------------------------------------------------------------------- latency
class FirstToken(BaseStreamer):
    """Notes when the first token of a batch is there; `generate` puts the prompt before it."""

    def __init__(self, mark: Callable[[], float]):
        self._mark, self._puts = mark, 0
        self.at_seconds: float | None = None

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.at_seconds = self._mark()

    def end(self) -> None: ...


def answer(model: Any, prompts: torch.Tensor, new_tokens: int, pad_id: int, **more: Any) -> torch.Tensor:
    """Greedy answers of exactly `new_tokens` tokens; `more` goes to `generate` (streamer, adapter_names)."""
    generation = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=pad_id
    )
    prompts = prompts.to(model.device)
    output: torch.Tensor = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=generation, **more
    )
    return output[:, prompts.shape[1] :]


def time_forms(serving: Serving, forms: Sequence[Form]) -> tuple[list[ServedForm], list[Generation]]:
    """(what each form takes to be ready, every timed answer). Peaks go to the phases "load FORM" and "serve FORM"."""
    context, at, memory = serving.context, serving.at, serving.memory
    clock, repetitions = context.clock, context.config.serve.repetitions
    timed = [form for form in forms if form.timed_as is None]
    sizes: dict[str, tuple[int | None, int | None]] = {}
    load_seconds: dict[str, list[float]] = {form.name: [] for form in timed}
    generations: list[Generation] = []
    context.progress.phase("serve", repetitions * len(timed))
    for repetition in range(repetitions):
        for form in [*timed[repetition % len(timed) :], *timed[: repetition % len(timed)]]:
            memory.enter(f"load {form.name}")
            started = clock.mark()
            model = load(form, at)
            with inference(model, at.device):
                serving.answer(model, serving.prompts(1, 1), 1)  # mapped weights are read by then
            load_seconds[form.name].append(clock.mark() - started)
            sizes[form.name] = disk_bytes(form, model, at), weights_bytes(model)
            memory.enter(f"serve {form.name}")
            generations += _answers(serving, model, form.name, repetition)
            del model
            context.progress.advance(sum(map(len, load_seconds.values())))
    memory.stop()
    served = [
        ServedForm(form.name, form.is_what, form.timed_as or form.name, form.base,
                   *sizes.get(form.name, (None, None)), load_seconds.get(form.name))
        for form in forms
    ]  # fmt: skip
    return served, generations


def _answers(serving: Serving, model: Any, name: str, repetition: int) -> Iterator[Generation]:
    asked, clock = serving.context.config.serve, serving.context.clock
    settings = list(itertools.product(asked.prompt_tokens, asked.batch_sizes))
    with inference(model, serving.at.device):
        for length, size in settings:
            serving.answer(model, serving.prompts(length, size), WARM_UP_TOKENS)
        for length, size in settings:
            batch, first = serving.prompts(length, size), FirstToken(clock.mark)
            started = clock.mark()
            serving.answer(model, batch, asked.new_tokens, streamer=first)
            ended = clock.mark()
            assert first.at_seconds is not None  # generate has put the prompt and at least one token
            yield Generation(name, length, size, repetition, first.at_seconds - started, ended - started)


# ------------------------------------------------------------------------------------------------------- fidelity
def _fidelity(serving: Serving, forms: Sequence[Form], rows: list[dict[str, Any]]) -> list[Fidelity]:
    """Every form that holds the training compared with the first, which was evaluated; empty for an untrained base."""
    context, memory = serving.context, serving.memory
    tuned = [form for form in forms if form.base is not None]
    if not tuned or not rows:
        return []
    memory.enter("fidelity")
    found: list[Fidelity] = []
    served: list[ServedAnswer] = []
    reference: tuple[torch.Tensor, list[tuple[int, ...]]] | None = None
    for form in tuned:
        context.progress.phase(f"answers of {form.name}", len(rows))
        with context.clock.span("fidelity"):
            answers, ids, logits = _answered(serving, form, rows)
        losses = [answer.loss for answer in answers if answer.loss is not None]
        count, tokens = len(answers), sum(answer.loss_tokens for answer in answers)
        equal = None if reference is None else sum(a == b for a, b in zip(ids, reference[1], strict=True))
        found.append(
            Fidelity(
                form=form.name,
                examples=count,
                scores=means(answer.scores for answer in answers),
                test_loss=sum(losses) / tokens if len(losses) == count else None,
                logits=None if reference is None else logit_difference(logits, reference[0]),
                equal_answers=equal,
            )
        )
        reference = reference or (logits, ids)
        served += answers
    memory.stop()
    write_lines(context.folder / "served_answers.jsonl.gz", map(asdict, served))
    return found


def _answered(
    serving: Serving, form: Form, rows: list[dict[str, Any]]
) -> tuple[list[ServedAnswer], list[tuple[int, ...]], torch.Tensor]:
    """(a form's answers with their scores and losses, their token ids, its logits at the reference answers)."""
    context, at = serving.context, serving.at
    task, size, pad_id = context.config.task, context.config.hardware.generate_batch, at.tokenizer.pad_token_id
    model = load(form, at, as_evaluated=True)
    with inference(model, at.device):
        head = SupervisedHead(model)
        logits = answer_logits(model, head, rows, pad_id, at.device)
        losses = example_losses(model, head, rows, batch_size=size, pad_id=pad_id, device=at.device)
        models.stop_at(model, {row["answer_ids"][-1] for row in rows})
        answers = generate(
            model, at.tokenizer, [row["prompt_ids"] for row in rows], batch_size=size, device=at.device,
            max_new_tokens=task.max_new_tokens, advance=context.progress.advance,
            header=answer_header(at.tokenizer, rows[0]),
        )  # fmt: skip
    scores = score(context.config, rows, [a.text for a in answers]).scores
    served = [
        ServedAnswer(form.name, row["example_id"], a.text, scored, nats if math.isfinite(nats) else None, tokens)
        for row, a, scored, (nats, tokens) in zip(rows, answers, scores, losses, strict=True)
    ]
    return served, [a.ids for a in answers], logits


def answer_logits(
    model: Any, head: SupervisedHead, rows: Sequence[Any], pad_id: int, on: device.Device
) -> torch.Tensor:
    """Logits at the first `POSITIONS` positions that predict the rows' answers: (positions, vocabulary), in fp32."""
    ends = itertools.accumulate(len(row["answer_ids"]) for row in rows)
    count = next((i for i, end in enumerate(ends, start=1) if end >= POSITIONS), len(rows))
    parts = []
    for start in range(0, count, LOGIT_BATCH):
        tensors = data.collate(rows[start : min(start + LOGIT_BATCH, count)], pad_id)
        labels = tensors.pop("labels")
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[:, :-1] = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        inputs = {key: value.to(on.type) for key, value in tensors.items()}
        parts.append(head.logits(model, keep.to(on.type), **inputs).float().cpu())
    return torch.cat(parts)[:POSITIONS]


def logit_difference(own: torch.Tensor, reference: torch.Tensor) -> LogitDifference:
    """How far two (positions, vocabulary) tensors are apart."""
    apart = (own - reference).abs()
    largest, mean = float(apart.max()), float(apart.double().mean())
    same = float((own.argmax(1) == reference.argmax(1)).double().mean())
    finite = math.isfinite(mean)
    return LogitDifference(len(own), largest if finite else None, mean if finite else None, same)


# ------------------------------------------------------------------------------------------------------- adapters
def _adapters(
    serving: Serving, forms: Sequence[Form], served: Sequence[ServedForm]
) -> tuple[Adapters | None, dict[str, str]]:
    """(many adapters on one base, what was not measured and why)."""
    config = serving.context.config
    beside = next((form for form in forms if form.adapter == "beside"), None)
    if beside is None or config.method.adapter is None or not config.serve.adapters:
        return None, {}
    if config.method.adapter.use_dora:
        return None, {"adapters": "PEFT answers no batch of several adapters with DoRA"}
    copy_bytes = next(form.weights_bytes for form in served if form.form == "merged")
    assert copy_bytes is not None  # the merged form is timed, so it has been loaded
    with serving.context.clock.span("adapters"):
        return time_adapters(serving, beside, copy_bytes), {}


def time_adapters(serving: Serving, beside: Form, copy_bytes: int) -> Adapters:
    """Load the largest number of adapters, then answer one batch with the first n of them for every n asked for.

    Two ways: `mixed`, requests of all n in one batch; `swapped`, the n in turn, each with its share of the batch (one
    of them is timed). Repeated half as often as forms.

    Args:
        beside: the form with its adapter beside it.
        copy_bytes: memory of the full model that one would serve instead of an adapter.
    """
    context, asked = serving.context, serving.context.config.serve
    length, repetitions = min(asked.prompt_tokens), math.ceil(asked.repetitions / 2)
    batch = serving.prompts(length, max(asked.adapters))
    generations: list[AdapterGeneration] = []
    context.progress.phase("adapters", repetitions * 2 * len(asked.adapters))

    def timed(way: Way, count: int, repetition: int, activate: str | None = None, **more: Any) -> None:
        requests = batch if way == "mixed" else batch[: len(batch) // count]
        started = context.clock.mark()
        if activate is not None:
            model.set_adapter(activate)
        serving.answer(model, requests, asked.new_tokens, **more)
        seconds = context.clock.mark() - started
        generations.append(AdapterGeneration(way, count, len(requests), repetition, seconds))
        context.progress.advance(len(generations))

    model = load(beside, serving.at)
    names = [f"adapter{number}" for number in range(max(asked.adapters))]
    load_seconds, activate_seconds, held = _load_adapters(serving, model, names)
    of_one = [p for key, p in model.named_parameters() if f".{names[0]}." in key or key.endswith(f".{names[0]}")]
    with inference(model, serving.at.device):
        serving.answer(model, batch, WARM_UP_TOKENS)
        for repetition, count in itertools.product(range(repetitions), asked.adapters):
            whose = [names[place % count] for place in range(len(batch))]
            timed("mixed", count, repetition, adapter_names=whose)
            timed("swapped", count, repetition, activate=names[count - 1])
    serving.memory.stop()
    return Adapters(length, total_bytes(of_one), copy_bytes, load_seconds, activate_seconds, held, generations)


def _load_adapters(
    serving: Serving, model: Any, names: Sequence[str]
) -> tuple[list[float], list[float], dict[str, int | None]]:
    """(seconds from disk to being active, seconds to be active again, memory held with each number asked for)."""
    mark, memory = serving.context.clock.mark, serving.memory
    load_seconds, activate_seconds = [], []
    held: dict[str, int | None] = {}
    for count, name in enumerate(names, start=1):
        started = mark()
        model.load_adapter(str(serving.at.weights), adapter_name=name, autocast_adapter_dtype=False)
        model.set_adapter(name)
        load_seconds.append(mark() - started)
        if count in serving.context.config.serve.adapters:
            memory.enter(f"{count} adapters")  # gives back what loading took
            held[str(count)] = memory.now()[0]
    for name in names:
        started = mark()
        model.set_adapter(name)
        activate_seconds.append(mark() - started)
    return load_seconds, activate_seconds, held
