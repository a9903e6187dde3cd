"""The frozen description of one run: which model, method, task, suite, training, hardware and seed.

Every field can be set from YAML under `conf/` or by a Hydra override; `from_mapping` turns the composed
mapping into a `RunConfig` and reports *all* mistakes at once. The types only check themselves: no file is
read, no device probed, no network touched here.

    >>> config = from_mapping({"model": {...}, "method": {...}, ..., "seed": 0})
    >>> config.method.learning_rate
    0.0002
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    OOM = "oom"  # out of memory, on the device or the host
    TIMEOUT = "timeout"  # a stage ran past hardware.stage_timeout_seconds
    KILLED = "killed"  # ended by a signal that neither the harness nor a memory limit sent
    ERROR = "error"  # any other failure


# Exit codes of a worker child. Python itself uses 1 for an uncaught exception.
EXIT_OK, EXIT_ERROR, EXIT_CONFIGURATION, EXIT_OOM = 0, 1, 2, 3

NEXT_STEP = {
    Status.OOM: "Lower train.micro_batch (the effective batch stays), set train.gradient_checkpointing=true, "
    "or choose a smaller method (lora, qlora).",
    Status.TIMEOUT: "Raise hardware.stage_timeout_seconds, or lower the budget (train.max_steps, task.*_examples).",
    Status.KILLED: "Run the same command again: only this run is repeated. If it happens again, look for the "
    "system's out-of-memory killer (dmesg) or a scheduler's limit.",
    Status.ERROR: "Read the log named above; the same command again repeats only this run.",
}

_OOM_IN_STAGE = {
    "fit": "Raise hardware.memory_budget_gib, set train.gradient_checkpointing=true, or choose a smaller method (lora, "
    "qlora): not even the smallest micro-batch that was tried fits.",
    "evaluate": "Lower hardware.generate_batch, or evaluate on a device with more memory; what was trained is kept.",
    "regression": "Lower suite.batch_size, or evaluate on a device with more memory; what was trained is kept.",
    "serve": "Lower serve.batch_sizes, serve.prompt_tokens or serve.adapters; the run itself is finished and kept.",
}
_FULL_DISK = "Free some space, or name other folders (paths.results, paths.artifacts, paths.cache); the same command "
_FULL_DISK += "again runs only what is missing."


def next_step(status: Status, stage: str, message: str, checkpoint_step: int | None = None) -> str:
    """What a person does about a failed stage, told from how, where and with which words it ended.

    Args:
        checkpoint_step: of the last checkpoint that training left; 0 or None: it left none.
    """
    if status is Status.OOM and stage in _OOM_IN_STAGE:
        return _OOM_IN_STAGE[stage]
    if status is Status.ERROR and ("No space left on device" in message or "Disk quota exceeded" in message):
        return _FULL_DISK
    resumes = checkpoint_step and status is not Status.OOM  # it would run out again
    return NEXT_STEP[status] + (f" The same command resumes from step {checkpoint_step}." if resumes else "")


class ConfigurationError(Exception):
    """Mistakes in what the user asked for, found before anything ran.

    Attributes:
        problems: one line each: what, what was given, what is allowed, how to mend it.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))

    def message(self) -> str:
        """The text shown to a person."""
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"Configuration: {head}; nothing was run."] + [f"  - {p}" for p in self.problems])


ModelType = Literal["llama", "mistral", "qwen2", "qwen3"]
_Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ArchitectureConfig:
    """A decoder of gated feed-forward layers and grouped attention under RMS norms."""

    model_type: ModelType
    vocab_size: _Count
    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    num_key_value_heads: _Count
    head_dim: _Count
    tie_word_embeddings: bool  # the output head is the embedding
    attention_bias: bool = False
    mlp_bias: bool = False


def read_architecture(content: Mapping[str, Any]) -> ArchitectureConfig:
    """The architecture that a model's `config.json` describes.

    Raises:
        ValueError: another kind of model, or numbers that are not there; the message says which.
    """
    kind = content.get("model_type")
    if kind not in get_args(ModelType):
        raise ValueError(f"model_type {kind!r} is not one that the planner knows; allowed: {', '.join(_KNOWN)}")
    heads, hidden = content.get("num_attention_heads"), content.get("hidden_size")
    filled: dict[str, Any] = {"tie_word_embeddings": False, "num_key_value_heads": heads}  # transformers' defaults
    if heads and hidden:
        filled["head_dim"] = hidden // heads
    filled |= {name: content[name] for name in _NAMES if content.get(name) is not None}
    missing = [f.name for f in fields(ArchitectureConfig) if f.name not in filled and f.default is MISSING]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing")
    return ArchitectureConfig(**filled)


_KNOWN = get_args(ModelType)
_NAMES = tuple(f.name for f in fields(ArchitectureConfig))


Strategy = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
DEEPSPEED = ("zero2", "zero3")
CUTS_WEIGHTS = ("fsdp", "zero3")
ONE = {"devices": 1, "strategy": "none", "cpu_offload": False}  # of hardware, what older descriptions do not say
_CUT = ("fsdp", *DEEPSPEED)


def problems_with(config: RunConfig) -> Iterator[str]:
    """Mistakes in `hardware.devices`, `hardware.strategy` and `hardware.cpu_offload`, told from the settings alone."""
    hardware, train, method = config.hardware, config.train, config.method
    devices, strategy = hardware.devices, hardware.strategy
    if devices > 1 and strategy == "none":
        yield f"hardware.strategy: none with hardware.devices={devices}; choose ddp, fsdp, zero2 or zero3"
    if devices == 1 and strategy != "none":
        yield f"hardware.strategy: {strategy} needs hardware.devices of at least 2; given 1"
    if hardware.cpu_offload and strategy not in _CUT:
        yield f"hardware.cpu_offload: {strategy} keeps everything on the device; use it with {', '.join(_CUT)}"
    if devices > 1 and train.micro_batch == "auto":
        yield f"train.micro_batch: auto probes one device, and hardware.devices={devices}; give a number"
    elif devices > 1 and train.batch_size % (devices * train.fitted_micro_batch):
        yield (
            f"hardware.devices: {devices} devices with train.micro_batch={train.micro_batch} do not divide "
            f"train.batch_size={train.batch_size}; choose train.micro_batch so that their product does"
        )
    if devices > 1 and train.checkpoint_every_steps is not None:
        yield f"train.checkpoint_every_steps: one device alone can resume, and hardware.devices={devices}; use null"
    if devices > 1 and method.optimizer != "adamw" and strategy != "ddp":
        yield f"method.optimizer: {method.optimizer} cannot work on cut state ({strategy}); use adamw, or ddp"
    adapter = method.adapter
    if adapter is not None and adapter.loraplus_lr_ratio is not None and strategy not in ("none", "ddp"):
        yield f"method.adapter.loraplus_lr_ratio: its optimizer is made before {strategy} cuts; use ddp"
    if strategy in _CUT and method.quantization is not None and method.quantization.scheme == "int8":
        yield f"method.quantization.scheme: int8 weights cannot be cut ({strategy}); use nf4, or ddp"


def inconsistencies(config: RunConfig) -> Iterator[str]:
    """Mistakes that only show between fields, one line each: the key, what was given, what to do."""
    method, task, suite, train = config.method, config.task, config.suite, config.train
    if method.trains == "adapter" and method.adapter is None:
        yield "method.adapter: missing; a method with trains=adapter needs rank, alpha and target_modules"
    if method.trains == "all_weights" and (method.adapter or method.quantization):
        yield "method: trains=all_weights takes neither adapter nor quantization; set both to null"
    if (adapter := method.adapter) is not None:
        if adapter.init == "loftq" and (method.quantization is None or method.quantization.scheme != "nf4"):
            yield "method.adapter.init: loftq starts from what nf4 quantization lost; use it with method=qlora"
        if adapter.init in ("pissa", "olora") and method.quantization is not None:
            yield f"method.adapter.init: {adapter.init} changes the base's weights; a quantized base cannot follow"
    if method.trains != "nothing" and method.learning_rate is None:
        yield "method.learning_rate: missing; set one, for example 2e-5 (full) or 2e-4 (adapter)"
    if method.trains != "nothing" and method.shots:
        yield "method.shots: only the untuned base is prompted with solved examples; set it to 0"
    if config.hardware.memory_budget_gib is not None and train.micro_batch != "auto":
        yield (
            f"hardware.memory_budget_gib: {config.hardware.memory_budget_gib:g} is read by train.micro_batch=auto, "
            f"and train.micro_batch is {train.micro_batch}; leave one of them out"
        )
    if train.micro_batch != "auto" and train.batch_size % train.micro_batch:
        yield (
            f"train.micro_batch: {train.micro_batch} does not divide train.batch_size={train.batch_size}; "
            "choose a divisor, so that every method sees the same examples per step"
        )
    if train.max_length > config.model.max_context:
        yield (
            f"train.max_length: {train.max_length} is beyond the {config.model.max_context} positions of "
            f"{config.model.name}; lower it or choose a model with a longer context"
        )
    if task.max_new_tokens >= train.max_length:
        yield f"task.max_new_tokens: {task.max_new_tokens} leaves no room for a prompt in {train.max_length} tokens"
    if task.source == "files" and not task.train_file:
        yield "task.train_file: missing; give the path of a .jsonl, .csv or .parquet file"
    if task.source == "hub" and not task.hub_dataset:
        yield "task.hub_dataset: missing; give the data set's name on the hub"
    if "label" in task.metrics and not task.labels:
        yield "task.labels: missing; the metric `label` needs the list of allowed answers"
    if suite.source == "local" and not suite.path:
        yield "suite.path: missing; give the folder of your lm-eval YAML tasks"
    if suite.source == "lm_eval" and not suite.tasks:
        yield "suite.tasks: empty; name at least one lm-eval task, or choose suite=none"
    yield from problems_with(config)
    yield from _of_serving(config.serve, config.model)


def _of_serving(serve: ServeConfig, model: ModelConfig) -> Iterator[str]:
    longest = max(serve.prompt_tokens, default=0)
    if serve.prompt_tokens and longest + serve.new_tokens > model.max_context:
        yield (
            f"serve.prompt_tokens: {longest} with serve.new_tokens={serve.new_tokens} are beyond the "
            f"{model.max_context} positions of {model.name}; lower one of them"
        )
    if serve.prompt_tokens and not serve.batch_sizes:
        yield "serve.batch_sizes: empty; name at least one, for example [1]"
    if serve.adapters and not serve.prompt_tokens:
        yield "serve.adapters: needs serve.prompt_tokens; choose serve=quick or serve=full and override that"
    if any(max(serve.adapters) % count for count in serve.adapters):
        yield f"serve.adapters: each of {serve.adapters} must divide the largest, which is the number of requests"


_STRICT = ConfigDict(extra="forbid")
PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Metric = Literal[
    "rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact_match", "token_f1", "numeric", "label", "json_valid"
]
Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """A causal language model and where it comes from."""

    name: str
    source: Literal["gguf_package", "hub", "folder", "random"]
    location: str = ""  # hub id, folder, or the Python package that carries the GGUF file
    revision: str | None = None  # hub commit or tag; None is the newest
    max_context: PositiveInt = 2048  # positions the model was trained for
    parameters: PositiveInt | None = None  # counted from the architecture; checked on load
    chat_template: str | None = None  # Jinja source for models that ship none; None keeps the model's own
    trust_remote_code: bool = False
    architecture: ArchitectureConfig | None = None  # for the planner; None: from the model's config.json


@dataclass(frozen=True, config=_STRICT)
class QuantizationConfig:
    """How the frozen base is stored (bitsandbytes)."""

    scheme: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quantization: bool = True


@dataclass(frozen=True, config=_STRICT)
class AdapterConfig:
    """A LoRA adapter, in PEFT's terms."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    init: Literal["default", "gaussian", "olora", "orthogonal", "pissa", "loftq"] = "default"  # as PEFT names them
    add_in_fp32: bool = True  # when not compiled, add the branch before rounding to bf16; see docs/numerics.md
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None  # LoRA+: B's learning rate / A's


@dataclass(frozen=True, config=_STRICT)
class MethodConfig:
    """What is trained, and how the frozen rest is kept. The only place where the methods differ."""

    name: str
    trains: Literal["nothing", "all_weights", "adapter"]
    weights_dtype: Dtype = "bfloat16"  # of the loaded weights; the master weights when all are trained
    quantization: QuantizationConfig | None = None
    adapter: AdapterConfig | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    dither: bool = True  # all_weights: start fp32 master weights between the numbers of bf16; see docs/numerics.md
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = "adamw"
    shots: Annotated[int, Field(ge=0)] = 0  # solved training examples shown in the prompt (base only)
    control: bool = False  # shows what the harness sees; no candidate for a recommendation


@dataclass(frozen=True, config=_STRICT)
class TaskConfig:
    """Prompt -> answer examples, their splits, and the metrics of the answers."""

    name: str
    source: Literal["docstrings", "files", "hub"]
    prompt: str = "{prompt}"  # template over an example's columns
    target: str = "{target}"
    system: str | None = None  # system message; None leaves the model's own default
    metrics: list[Metric] = field(default_factory=lambda: ["exact_match"])
    max_new_tokens: PositiveInt = 64
    train_examples: PositiveInt | None = None  # None: all there are
    validation_examples: PositiveInt | None = None
    test_examples: PositiveInt | None = None
    overflow: Literal["error", "drop"] = "error"  # an example longer than train.max_length
    train_file: str | None = None  # files: .jsonl, .csv or .parquet
    validation_file: str | None = None  # None: cut from train_file
    test_file: str | None = None
    hub_dataset: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = "test"
    train_hub_dataset: str | None = None  # train on another set than the tested one (MetaMathQA -> GSM8K)
    train_prompt: str | None = None  # templates for that set; None: as for testing
    train_target: str | None = None
    labels: list[str] | None = None  # allowed answers of the `label` metric
    label_column: str | None = None  # integer class column, replaced by its name in `labels`


@dataclass(frozen=True, config=_STRICT)
class SuiteConfig:
    """The general-capability regression suite: lm-eval tasks, the same items for base and tuned."""

    name: str
    source: Literal["none", "quick", "lm_eval", "local"]
    tasks: list[str] = field(default_factory=list)
    items_per_task: PositiveInt | None = None  # None: all
    path: str | None = None  # local: folder with lm-eval YAML tasks
    batch_size: PositiveInt = 16  # scores move with padding: the same for every run of a comparison


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """The budget and schedule shared by every method of a comparison."""

    max_length: PositiveInt = 1024  # tokens of prompt and answer together
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None  # optimizer steps; None: what the epochs give
    batch_size: PositiveInt = 16  # examples per optimizer step, whatever the micro-batch
    micro_batch: PositiveInt | Literal["auto"] = 4  # examples per forward pass; auto: the most that fit
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_fraction: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    heldout_points: PositiveInt = 4  # held-out losses during training, the last at its end
    untimed_steps: Annotated[int, Field(ge=0)] = 3  # warm-up steps left out of the speed
    gradient_checkpointing: bool = False
    compile: Literal["auto", "off", "regional"] = "auto"  # torch.compile layer by layer
    packing: bool = False  # a micro-batch as one row without padding; examples do not see one another
    kernels: Literal["torch", "liger"] = "torch"  # liger: Triton kernels for norms, rotations and MLPs (CUDA)
    checkpoint_every_steps: PositiveInt | None = None  # to go on from after a kill; None: no checkpoints

    @property
    def fitted_micro_batch(self) -> int:
        """`micro_batch` as a number.

        Raises:
            ValueError: it is `auto`, which the stage `fit` answers.
        """
        if self.micro_batch == "auto":
            raise ValueError("train.micro_batch=auto has not been fitted yet")
        return self.micro_batch


@dataclass(frozen=True, config=_STRICT)
class HardwareConfig:
    """The machine, its limits and its price."""

    name: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of the autocast region
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    threads: PositiveInt | None = None  # None: every core this process may use
    generate_batch: PositiveInt = 64  # test prompts decoded together
    stage_timeout_seconds: PositiveInt = 86_400
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = None  # of a child's private memory (RLIMIT_DATA)
    memory_budget_gib: Annotated[float, Field(gt=0)] | None = None  # train.micro_batch=auto: of training's peak;
    # None: nine tenths of the device's memory
    price_usd_per_hour: Annotated[float, Field(ge=0)] | None = None
    devices: PositiveInt = 1  # that share every training step, one process each; see docs/devices.md
    strategy: Strategy = "none"  # how they share it
    cpu_offload: bool = False  # fsdp: cut weights and optimizer state wait in host memory; zero2, zero3: likewise
    # Of one device, from its data sheet, for the planner; None: unknown.
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    bf16_tflops: Annotated[float, Field(gt=0)] | None = None  # dense matrix products, 10^12 FLOP/s
    watts: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, config=_STRICT)
class TrackingConfig:
    """Where a finished record is sent besides its folder."""

    name: str
    kind: Literal["none", "wandb", "tensorboard"] = "none"
    project: str = "bench"
    mode: Literal["offline", "online"] = "offline"


@dataclass(frozen=True, config=_STRICT)
class PathsConfig:
    """The only folders that a run writes to, and the one that it may read from in place of the hub."""

    results: str = "results"
    artifacts: str = "artifacts"
    cache: str = "cache"
    bundle: str | None = None  # what `bench fetch` gathered: the hub is read from there and never asked


@dataclass(frozen=True, config=_STRICT)
class ServeConfig:
    """What serving the result costs, measured when a run is finished; never part of what names a run."""

    name: str = "none"
    prompt_tokens: list[PositiveInt] = field(default_factory=list)  # lengths of prompts; empty: nothing is served
    batch_sizes: list[PositiveInt] = field(default_factory=lambda: [1])  # requests answered together
    new_tokens: Annotated[int, Field(gt=1)] = 16  # of every answer; the end token is kept from coming
    repetitions: PositiveInt = 5  # of every form in turn, each loaded anew
    rounds: PositiveInt = 1  # processes that measure the latency, one after the other
    fidelity_examples: Annotated[int, Field(ge=0)] | None = None  # test examples that each form answers; None: all
    adapters: list[PositiveInt] = field(default_factory=list)  # numbers of adapters on one base; empty: not measured


@dataclass(frozen=True, config=_STRICT)
class TrialConfig:
    """A trial of `bench tune`: it trains and measures held-out loss, evaluates nothing and keeps no weights."""

    best_losses: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss) of the best trial so far
    hopeless_below: Fraction = 0.5  # ends early when its loss fell by less than this share of that trial's fall


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """One run. Equal configs give equal run ids (`identity.run_id`)."""

    model: ModelConfig
    method: MethodConfig
    task: TaskConfig
    suite: SuiteConfig
    train: TrainConfig
    hardware: HardwareConfig
    tracking: TrackingConfig
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sweep: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "default"
    rates: str | None = None  # file of `make tune` that the learning rate is taken from
    learning_rate_source: str = "config"  # or "tuned: FILE sha256 ..."; filled in by planning
    trial: TrialConfig | None = None  # None: an ordinary run; filled in by `bench tune`
    serve: ServeConfig = field(default_factory=ServeConfig)

    @property
    def untrained(self) -> bool:
        """Whether the run trains nothing: the base model as it is."""
        return self.method.trains == "nothing"


def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """Build and check a run description.

    Raises:
        ConfigurationError: with every mistake found, each naming the key, what was given and what is allowed.
    """
    try:
        config = TypeAdapter(RunConfig).validate_python(mapping)
    except ValidationError as error:
        raise ConfigurationError([_explain(e) for e in error.errors(include_url=False)]) from None
    problems = list(inconsistencies(config))
    if problems:
        raise ConfigurationError(problems)
    return config


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The JSON form of a run description; `from_mapping` reads it back unchanged."""
    mapping: dict[str, Any] = TypeAdapter(RunConfig).dump_python(config, mode="json")
    return mapping


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The run description with other values at dotted keys, each checked by itself.

    >>> with_settings(config, {"method.learning_rate": 1e-4, "seed": 2})
    """
    mapping = to_mapping(config)
    for key, value in settings.items():
        *path, name = key.split(".")
        owner = mapping
        for part in path:
            owner = owner[part]
        owner[name] = value
    return TypeAdapter(RunConfig).validate_python(mapping)


_UNION_MEMBERS = ("str", "list[str]", "constrained-int", "literal['auto']")  # as pydantic names what it tried


def _explain(error: Any) -> str:
    """One pydantic error as a line that says what, what was given and what is allowed."""
    location = [str(part) for part in error["loc"] if part not in _UNION_MEMBERS]
    key = ".".join(location)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such setting{suggest(location[-1], known_keys(location[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; given {error['input']!r}"


def known_keys(path: list[str]) -> list[str]:
    """The settings allowed below a dotted path (a list of its parts)."""
    owner: Any = RunConfig
    for part in path:
        annotations = {f.name: f.type for f in fields(owner)} if is_dataclass(owner) else {}
        name = str(annotations.get(part, "")).removesuffix(" | None")
        owner = globals().get(name)
    return [f.name for f in fields(owner)] if is_dataclass(owner) else []


def suggest(given: str, allowed: list[str]) -> str:
    """' (did you mean x?); allowed: ...' for an unknown name."""
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{hint}; allowed: {', '.join(sorted(allowed))}" if allowed else hint
