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
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bench.spec.architecture import ArchitectureConfig
from bench.spec.consistency import inconsistencies
from bench.spec.devices import Strategy
from bench.spec.failure import ConfigurationError

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
    bundle: str | None = None  # what `bench.fetch` gathered: the hub is read from there and never asked


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
    """A trial of `bench.tune`: it trains and measures held-out loss, evaluates nothing and keeps no weights."""

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
    trial: TrialConfig | None = None  # None: an ordinary run; filled in by `bench.tune`
    serve: ServeConfig = field(default_factory=ServeConfig)


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
