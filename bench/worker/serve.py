"""What serving the run's result costs: latency and memory of every form, what merging changed, many adapters.

Runs after the evaluation, on weights that are finished; it changes nothing that was measured before.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from bench.config import QuantizationConfig, RunConfig, ServeConfig
from bench.identity import data_folder
from bench.record import (
    AdapterGeneration,
    Adapters,
    Fidelity,
    Generation,
    LogitDifference,
    ServedAnswer,
    ServedForm,
    ServeResult,
    Way,
)
from bench.stats import metrics
from bench.worker import data, device, methods, models
from bench.worker import data as prepare
from bench.worker import loss as heldout
from bench.worker.device import Device
from bench.worker.evaluate import generate
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.memory import Memory, quantization_constants, total_bytes
from bench.worker.instruments.tokens import IGNORED
from bench.worker.loss import SupervisedHead
from bench.worker.main import Context, Progress, write_lines
from bench.worker.methods import Form
from bench.worker.models import make_once


@dataclass(frozen=True)
class Origin:
    """Where a run's forms come from."""

    config: RunConfig
    source: str  # of the base, from `models.locate`
    weights: Path  # what training wrote
    device: Device
    tokenizer: Any

    def folder(self, form: Form) -> Path:
        """Of a form that is built."""
        return self.weights / "forms" / form.name


def build(form: Form, at: Origin) -> Path:
    """The folder that a form is loaded from; merged and requantized ones are written to it, unless they are whole."""
    if not form.is_built:
        return at.weights
    return make_once(at.folder(form), lambda target: _write(form, at, target))


def _write(form: Form, at: Origin, target: Path) -> None:
    if form.before is not None and form.scheme is not None:
        model = _from_folder(build(form.before, at), at, form.scheme)
    else:
        from peft import PeftModel

        # PEFT keeps the adapter in fp32 here, so that each weight is added to in fp32 and rounded once.
        model = PeftModel.from_pretrained(_start(form, at), at.weights).merge_and_unload()
        model = model.to(torch.bfloat16)  # the form that is shipped, wherever it was computed
    model.save_pretrained(target)
    at.tokenizer.save_pretrained(target)


def load(form: Form, at: Origin, *, as_evaluated: bool = False) -> Any:
    """The model in evaluation mode on the device.

    Args:
        as_evaluated: multiply 4-bit weights as 16-bit ones on a CPU, as the evaluation does: the same numbers, faster.
    """
    model = _from_folder(at.folder(form), at) if form.is_built else _start(form, at)
    if as_evaluated:
        model = _in_evaluations_numerics(model, at.device)
    if form.adapter == "beside":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, at.weights, autocast_adapter_dtype=False)
    return model.eval()


def load_exact(form: Form, at: Origin) -> Any:
    """The form as exact arithmetic would have it, nearly: the weights that it has, fp32 in all that is computed."""
    model = _from_folder(at.folder(form), at) if form.is_built else _start(form, at)
    if getattr(model, "is_loaded_in_4bit", False):
        model = model.dequantize(at.device.compute_dtype)
    model = model.float()
    if form.adapter == "beside":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, at.weights)  # in fp32, as it was saved
    return model.eval()


def load_folder(config: RunConfig, folder: Path, device: Device) -> Any:
    """A built form from any folder, in the numerics in which it was scored."""
    model = methods.load_as_stored(config, str(folder), device.type, device.compute_dtype)
    return _in_evaluations_numerics(model, device).eval()


def _in_evaluations_numerics(model: Any, device: Device) -> Any:
    """4-bit weights dequantized on a CPU; others as they are."""
    in_4_bit = device.type == "cpu" and getattr(model, "is_loaded_in_4bit", False)
    return model.dequantize(device.compute_dtype) if in_4_bit else model


def _start(form: Form, at: Origin) -> Any:
    if form.start == "trained":
        return _from_folder(at.weights, at)
    if form.start == "original":
        return _from_folder(at.source, at)
    base = methods.load_base(at.config, at.source, at.device.type, at.device.compute_dtype)
    if form.start == "dequantized":
        base = base.dequantize(at.device.compute_dtype)
        base._weight_conversions = None  # how the 4-bit file was read; a 16-bit one is written otherwise
    return base


def _from_folder(folder: Path | str, at: Origin, quantization: QuantizationConfig | None = None) -> Any:
    return methods.load_as_stored(at.config, str(folder), at.device.type, at.device.compute_dtype, quantization)


def disk_bytes(form: Form, model: Any, at: Origin) -> int | None:
    """What must be on disk to load a form; None where the base's files cannot be found.

    Args:
        model: the loaded form, which knows the folder or the hub name that its base was read from.
    """
    base = model.get_base_model() if form.adapter == "beside" else model
    folder = _base_folder(str(base.name_or_path), at)
    if folder is None:
        return None
    return size_bytes(folder) + (size_bytes(at.weights) if form.adapter == "beside" else 0)


def _base_folder(name: str, at: Origin) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=at.config.model.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors that make a model or an adapter; others beside them (another layout of it) are left out."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    named = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
    return [path for path in named if path.exists()] or sorted(folder.glob("*.safetensors"))


def size_bytes(folder: Path) -> int:
    """Of the weights in a folder."""
    return sum(path.stat().st_size for path in weight_files(folder))


def weights_bytes(model: Any) -> int:
    """Of a loaded model's tensors, quantization constants included; tied weights count once."""
    parameters = list(model.parameters())
    constants = [tensor for parameter in parameters for tensor in quantization_constants(parameter)]
    return total_bytes([*parameters, *constants, *model.buffers()])


WARM_UP_TOKENS = 2  # of one untimed answer to each kind of batch: buffers are allocated, kernels chosen


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


class Prompts:
    """Batches of prompts of any length, cut from the test prompts' own tokens; the same for every form."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self._tokens = [token for row in rows for token in row["prompt_ids"]]

    def batch(self, prompt_tokens: int, size: int) -> torch.Tensor:
        """(size, prompt_tokens); the tokens are used again from the start when they run out."""
        tokens = itertools.islice(itertools.cycle(self._tokens), prompt_tokens * size)
        return torch.tensor(list(tokens)).reshape(size, prompt_tokens)


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


def measure(
    forms: Sequence[Form],
    at: Origin,
    prompts: Prompts,
    serve: ServeConfig,
    *,
    clock: Clock,
    memory: Memory,
    progress: Progress,
) -> tuple[list[ServedForm], list[Generation]]:
    """(what each form takes to be ready, every timed answer). Peaks go to the phases "load FORM" and "serve FORM"."""
    timed = [form for form in forms if form.timed_as is None]
    ready: dict[str, ServedForm] = {}
    generations: list[Generation] = []
    progress.phase("serve", serve.repetitions * len(timed))
    for repetition in range(serve.repetitions):
        for form in [*timed[repetition % len(timed) :], *timed[: repetition % len(timed)]]:
            memory.enter(f"load {form.name}")
            model, seconds = _ready(form, at, prompts, clock)
            before = ready.get(form.name)
            loads = [*((before and before.load_seconds) or []), seconds]
            ready[form.name] = _described(form, disk_bytes(form, model, at), weights_bytes(model), loads)
            memory.enter(f"serve {form.name}")
            generations += _answers(model, form.name, repetition, at, prompts, serve, clock)
            del model
            progress.advance(sum(len(served.load_seconds or ()) for served in ready.values()))
    memory.stop()
    return [ready.get(form.name) or _described(form, None, None, None) for form in forms], generations


def _described(
    form: Form, on_disk_bytes: int | None, in_memory_bytes: int | None, loads: list[float] | None
) -> ServedForm:
    timed_as = form.timed_as or form.name
    return ServedForm(form.name, form.is_what, timed_as, form.base, on_disk_bytes, in_memory_bytes, loads)


def _ready(form: Form, at: Origin, prompts: Prompts, clock: Clock) -> tuple[Any, float]:
    """The loaded form, and the seconds until it had read one token: weights that are mapped are read by then."""
    started = clock.mark()
    model = load(form, at)
    with heldout.inference(model, at.device):
        answer(model, prompts.batch(1, 1), 1, at.tokenizer.pad_token_id)
    return model, clock.mark() - started


def _answers(
    model: Any, name: str, repetition: int, at: Origin, prompts: Prompts, serve: ServeConfig, clock: Clock
) -> Iterator[Generation]:
    pad_id = at.tokenizer.pad_token_id
    settings = list(itertools.product(serve.prompt_tokens, serve.batch_sizes))
    with heldout.inference(model, at.device):
        for length, size in settings:
            answer(model, prompts.batch(length, size), WARM_UP_TOKENS, pad_id)
        for length, size in settings:
            batch, first = prompts.batch(length, size), FirstToken(clock.mark)
            started = clock.mark()
            answer(model, batch, serve.new_tokens, pad_id, streamer=first)
            ended = clock.mark()
            assert first.at_seconds is not None  # generate has put the prompt and at least one token
            yield Generation(name, length, size, repetition, first.at_seconds - started, ended - started)


POSITIONS = 256  # whose logits are compared: 50 MB of fp32 with a vocabulary of 50,000
LOGIT_BATCH, OTHER_BATCH = 4, 1
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Observed:
    """What a form says of the test examples."""

    logits: torch.Tensor  # (positions, vocabulary), on the CPU
    answers: list[ServedAnswer]
    tokens: list[tuple[int, ...]]  # of the greedy answers


def observe(
    name: str, model: Any, config: RunConfig, tokenizer: Any, rows: Rows, device: Device,
    advance: Callable[[int], None] = lambda done: None,
) -> Observed:  # fmt: skip
    """Logits, losses, greedy answers and scores of a form."""
    size, pad_id = config.hardware.generate_batch, tokenizer.pad_token_id
    head = SupervisedHead(model)
    with heldout.inference(model, device):
        logits = answer_logits(model, head, rows, pad_id, device)
        losses = heldout.example_losses(
            model, head, list(map(dict, rows)), batch_size=size, pad_id=pad_id, device=device
        )
        answers = generate(
            model,
            tokenizer,
            [row["prompt_ids"] for row in rows],
            max_new_tokens=config.task.max_new_tokens,
            batch_size=size,
            device=device,
            advance=advance,
        )
    texts, references = [answer.text for answer in answers], [row["reference"] for row in rows]
    scores = metrics.score_all(config.task.metrics, texts, references, labels=config.task.labels)
    served = [
        ServedAnswer(name, row["example_id"], text, score, nats if math.isfinite(nats) else None, tokens)
        for row, text, score, (nats, tokens) in zip(rows, texts, scores, losses, strict=True)
    ]
    return Observed(logits, served, [answer.ids for answer in answers])


def answer_logits(
    model: Any, head: SupervisedHead, rows: Rows, pad_id: int, device: Device, batch: int = LOGIT_BATCH
) -> torch.Tensor:
    """Logits at the first `POSITIONS` positions that predict the rows' answers: (positions, vocabulary), in fp32."""
    ends = list(itertools.accumulate(len(row["answer_ids"]) for row in rows))
    chosen = rows[: next((i for i, end in enumerate(ends, start=1) if end >= POSITIONS), len(ends))]
    parts = []
    for start in range(0, len(chosen), batch):
        tensors = data.collate(chosen[start : start + batch], pad_id)
        labels = tensors.pop("labels")
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[:, :-1] = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        inputs = {key: value.to(device.type) for key, value in tensors.items()}
        parts.append(head.logits(model, keep.to(device.type), **inputs).float().cpu())
    return torch.cat(parts)[:POSITIONS]


def logit_difference(own: torch.Tensor, reference: torch.Tensor) -> LogitDifference:
    """How far two (positions, vocabulary) tensors are apart."""
    apart = (own - reference).abs()
    largest, mean = float(apart.max()), float(apart.double().mean())
    same = float((own.argmax(1) == reference.argmax(1)).double().mean())
    finite = math.isfinite(mean)
    return LogitDifference(len(own), largest if finite else None, mean if finite else None, same)


def compared(own: Observed, reference: Observed, exact: torch.Tensor | None) -> Fidelity:
    """A form set against the reference; set against itself it has no difference.

    Args:
        exact: the reference's logits, computed in fp32; None: unknown.
    """
    count, tokens = len(own.answers), sum(answer.loss_tokens for answer in own.answers)
    losses = [answer.loss for answer in own.answers]
    known = [loss for loss in losses if loss is not None]
    names = own.answers[0].scores
    itself = own is reference
    shares = [agreement(a, b) for a, b in zip(own.tokens, reference.tokens, strict=True)]
    return Fidelity(
        form=own.answers[0].form,
        examples=count,
        scores={name: sum(answer.scores[name] for answer in own.answers) / count for name in names},
        test_loss=sum(known) / tokens if len(known) == count else None,
        logits=None if itself else logit_difference(own.logits, reference.logits),
        exact=None if exact is None else logit_difference(own.logits, exact),
        token_agreement=None if itself else sum(shares) / count,
        equal_answers=None if itself else sum(a == b for a, b in zip(own.tokens, reference.tokens, strict=True)),
    )


def agreement(own: Sequence[int], reference: Sequence[int]) -> float:
    """The share of the longer answer that comes before the first difference; 1 for equal ones.

    >>> agreement([5, 6, 7, 8], [5, 6, 9])
    0.5
    """
    longest = max(len(own), len(reference))
    pairs = enumerate(zip(own, reference, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(own), len(reference)))
    return same / longest if longest else 1.0


_LARGE_SHARE = 2  # a batch of requests for up to 64 adapters takes long: half of the repetitions


def measure_adapters(
    beside: Form, merged: Form, at: Origin, prompts: Prompts, serve: ServeConfig, *,
    clock: Clock, memory: Memory, progress: Progress,
) -> Adapters:  # fmt: skip
    """Load the largest number of adapters, then answer with the first n of them for every n asked for.

    Args:
        beside, merged: the form with its adapter beside it, and the full model that one would serve instead.
    """
    most, length = max(serve.adapters), min(serve.prompt_tokens)
    repetitions = -(-serve.repetitions // _LARGE_SHARE)
    progress.phase("adapters", repetitions * len(get_args(Way)) * len(serve.adapters))
    model = load(beside, at)
    names = [f"adapter{number}" for number in range(most)]
    load_seconds, held = _load_adapters(model, names, at, serve.adapters, clock, memory)
    activate_seconds = [_activate(model, name, clock) for name in names]
    bytes_of_one = _adapter_bytes(model, names[0])
    session = _Session(at, prompts, serve, length, clock)
    generations: list[AdapterGeneration] = []
    with heldout.inference(model, at.device):
        session.warm_up(model)
        for repetition in range(repetitions):
            for count in serve.adapters:
                generations.append(session.mixed(model, names[:count], repetition))
                generations.append(session.alone("swapped", model, count, repetition, activate=names[count - 1]))
                progress.advance(len(generations))
    del model
    memory.enter("copy")  # gives back what the adapters' model took
    copy = load(merged, at)
    copy_bytes = weights_bytes(copy)
    with heldout.inference(copy, at.device):
        session.warm_up(copy)
        for repetition in range(repetitions):
            for count in serve.adapters:
                generations.append(session.alone("copies", copy, count, repetition))
                progress.advance(len(generations))
    memory.stop()
    return Adapters(length, bytes_of_one, copy_bytes, load_seconds, activate_seconds, held, generations)


class _Session:
    """Answers one batch in each way."""

    def __init__(self, at: Origin, prompts: Prompts, serve: ServeConfig, length: int, clock: Clock):
        self._batch = prompts.batch(length, max(serve.adapters))
        self._new_tokens, self._pad_id, self._clock = serve.new_tokens, at.tokenizer.pad_token_id, clock

    def warm_up(self, model: Any) -> None:
        answer(model, self._batch, WARM_UP_TOKENS, self._pad_id)

    def mixed(self, model: Any, names: Sequence[str], repetition: int) -> AdapterGeneration:
        whose = [names[place % len(names)] for place in range(len(self._batch))]
        started = self._clock.mark()
        answer(model, self._batch, self._new_tokens, self._pad_id, adapter_names=whose)
        return self._generation("mixed", len(names), len(self._batch), repetition, started)

    def alone(
        self, way: Way, model: Any, count: int, repetition: int, activate: str | None = None
    ) -> AdapterGeneration:
        share = self._batch[: len(self._batch) // count]
        started = self._clock.mark()
        if activate is not None:
            model.set_adapter(activate)
        answer(model, share, self._new_tokens, self._pad_id)
        return self._generation(way, count, len(share), repetition, started)

    def _generation(self, way: Way, count: int, size: int, repetition: int, started: float) -> AdapterGeneration:
        return AdapterGeneration(way, count, size, repetition, self._clock.mark() - started)


def _load_adapters(
    model: Any, names: Sequence[str], at: Origin, counts: Sequence[int], clock: Clock, memory: Memory
) -> tuple[list[float], dict[str, int | None]]:
    """(seconds from disk to being active of each, memory held with each number of them)."""
    seconds: list[float] = []
    held: dict[str, int | None] = {}
    for count, name in enumerate(names, start=1):
        started = clock.mark()
        model.load_adapter(str(at.weights), adapter_name=name, autocast_adapter_dtype=False)
        model.set_adapter(name)
        seconds.append(clock.mark() - started)
        if count in counts:
            memory.enter(f"{count} adapters")  # gives back what loading took
            held[str(count)] = memory.now()[0]
    return seconds, held


def _activate(model: Any, name: str, clock: Clock) -> float:
    started = clock.mark()
    model.set_adapter(name)
    return clock.mark() - started


def _adapter_bytes(model: Any, name: str) -> int:
    return total_bytes([p for key, p in model.named_parameters() if f".{name}." in key or key.endswith(f".{name}")])


def run(context: Context) -> ServeResult:
    """Build every form, time them in turn, set them against the evaluated one, and share a base among adapters."""
    config, clock = context.config, context.clock
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    rows = list(prepare.load_prepared(data_folder(config)).test)
    context.progress.phase("build")
    memory.enter("build")
    source = models.locate(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    at = Origin(config, source, context.weights, resolved, tokenizer)
    forms = methods.served_forms(config.method)
    with clock.span("build"):
        for form in forms:
            build(form, at)
    prompts = Prompts(rows)
    context.load.start()
    with clock.span("latency"):
        served, generations = measure(
            forms, at, prompts, config.serve, clock=clock, memory=memory, progress=context.progress
        )
    environment = resolved.environment(context.load.read())
    faithful, noise, as_evaluated = _fidelity(context, forms, at, rows, memory)
    many, skipped = _adapters(context, forms, at, prompts, memory)
    return ServeResult(
        settings=asdict(config.serve),
        forms=served,
        generations=generations,
        fidelity=faithful,
        rounding=noise,
        answers_as_evaluated=as_evaluated,
        adapters=many,
        skipped=skipped,
        memory=list(memory.read().values()),
        spans_seconds=clock.read(),
        environment=environment,
        price_usd_per_hour=config.hardware.price_usd_per_hour,
    )


def _fidelity(
    context: Context, forms: Sequence[Form], at: Origin, rows: list[dict[str, Any]], memory: Memory
) -> tuple[list[Fidelity], LogitDifference | None, int | None]:
    """(every form against the evaluated one, rounding alone, answers equal to the evaluation's); none for a base."""
    rows = rows[: context.config.serve.fidelity_examples]
    tuned = [form for form in forms if form.base is not None]  # the first is the one that is evaluated
    if not tuned or not rows:
        return [], None, None
    memory.enter("fidelity")
    seen: dict[str, Observed] = {}
    rounding = None
    with context.clock.span("fidelity"):
        for form in tuned:
            context.progress.phase(f"answers of {form.name}", len(rows))
            model = load(form, at, as_evaluated=True)
            progress = context.progress.advance
            seen[form.name] = observe(form.name, model, context.config, at.tokenizer, rows, at.device, progress)
            if form is tuned[0]:
                rounding = _rounding(model, at, rows, seen[form.name])
            del model
        exact = _exact_logits(tuned[0], at, rows)
    memory.stop()
    reference = seen[tuned[0].name]
    write_lines(
        context.folder / "served_answers.jsonl.gz", (asdict(one) for form in seen.values() for one in form.answers)
    )
    compared = [compared(observed, reference, exact) for observed in seen.values()]
    return compared, rounding, _as_evaluated(context, reference)


def _rounding(model: Any, at: Origin, rows: list[dict[str, Any]], observed: Observed) -> LogitDifference:
    """The same model on the same rows, in batches of another size."""
    pad_id, batch = at.tokenizer.pad_token_id, OTHER_BATCH
    with heldout.inference(model, at.device):
        other = answer_logits(model, SupervisedHead(model), rows, pad_id, at.device, batch)
    return logit_difference(other, observed.logits)


def _exact_logits(form: Form, at: Origin, rows: list[dict[str, Any]]) -> torch.Tensor | None:
    """The evaluated form's logits in fp32; None where twice its memory is too much for the device."""
    in_fp32 = replace(at.device, compute_dtype=torch.float32)
    try:
        model = load_exact(form, at)
        with heldout.inference(model, in_fp32):
            pad_id = at.tokenizer.pad_token_id
            return answer_logits(model, SupervisedHead(model), rows, pad_id, in_fp32)
    except torch.OutOfMemoryError:
        return None


def _as_evaluated(context: Context, reference: Observed) -> int | None:
    """How many of the reference's answers are those that the evaluation recorded."""
    try:
        with gzip.open(context.folder / "samples.jsonl.gz", "rt", encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError):
        return None
    recorded = {sample["example_id"]: sample["prediction"] for sample in samples}
    return sum(recorded.get(answer.example_id) == answer.prediction for answer in reference.answers)


def _adapters(
    context: Context, forms: Sequence[Form], at: Origin, prompts: Prompts, memory: Memory
) -> tuple[Adapters | None, dict[str, str]]:
    """(many adapters on one base, what was not measured and why)."""
    serve: ServeConfig = context.config.serve
    beside = next((form for form in forms if form.adapter == "beside"), None)
    if beside is None or not serve.adapters:
        return None, {}
    adapter = context.config.method.adapter
    if adapter is not None and adapter.use_dora:
        return None, {"adapters": "PEFT answers no batch of several adapters with DoRA"}
    merged = next(form for form in forms if form.adapter == "merged" and form.scheme is None)
    with context.clock.span("adapters"):
        found = measure_adapters(
            beside, merged, at, prompts, serve, clock=context.clock, memory=memory, progress=context.progress
        )
    return found, {}
