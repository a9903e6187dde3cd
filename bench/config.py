"""The frozen description of one run: which model, method, task, suite, training, hardware and seed.

Every field can be set from YAML under `conf/` or by a Hydra override; `mistakes.from_mapping` turns the composed
mapping into a `RunConfig`. The types only check themselves: no file is read, no device probed, no network touched here.
A field's `Role` says what it is for; it is declared with the field, or once for its part in `RunConfig`. Keys,
comparisons, tuning and names of arms follow from the roles.

    >>> roles()["train.epochs"]
    Role(stage='training', requirement='budget', ...)
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from bench.metrics import METRICS
from bench.own_metrics import is_own
from bench.trust import checked_name

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid")
PositiveInt = Annotated[int, Field(gt=0)]
Name = Annotated[str, AfterValidator(checked_name)]  # becomes part of paths and of lines on a terminal
Fraction = Annotated[float, Field(ge=0, le=1)]


# --- What a setting is for ---


def _always(config: RunConfig) -> bool:
    return True


def _trained(config: RunConfig) -> bool:
    return not config.untrained


def _prompted(config: RunConfig) -> bool:
    return config.method.shots > 0


def _drawn(config: RunConfig) -> bool:
    return config.method.shots > 0 and config.method.retrieval is None


def _reads_training_examples(config: RunConfig) -> bool:
    task = config.task  # labels that are not given are the targets of training, for prompts and metrics
    names_labels = "{labels}" in (task.prompt or "") or any(m == "label" or is_own(m) for m in task.metrics)
    return not config.untrained or config.method.shots > 0 or (task.labels is None and names_labels)


def _seeded(config: RunConfig) -> bool:
    return not config.untrained or _drawn(config)


def _loaded(config: RunConfig) -> bool:
    return config.method.loaded_from is not None


def _all_weights(config: RunConfig) -> bool:
    return config.method.trains == "all_weights" and not _loaded(config)


def _measured_along(config: RunConfig) -> bool:
    return bool(config.evaluation.points) and not config.untrained


def _weighed(config: RunConfig) -> bool:
    return config.evaluation.weights and not config.untrained


def _several_devices(config: RunConfig) -> bool:
    return not config.untrained and config.hardware.devices > 1


@plain_dataclass(frozen=True)
class Role:
    """What a setting is for.

    Attributes:
        stage: the first stage whose result it changes; "planner": read by estimates alone; "none": changes no number.
        requirement: its name in a comparison, where two runs must agree in it; None: they may differ.
        keeps_rate: of a setting of data or training: a tuned learning rate stays the best one when it changes.
        applies: whether it changes anything in such a run.
        in_data: whether it changes the prepared test examples too, of a setting that training does not depend on.
        for_training: a requirement between trained runs alone; None: as all settings of training are.
        added: when runs had been recorded without it: unset (None) it is in no key, so that these keep theirs.
    """

    stage: Literal["data", "training", "evaluation", "serving", "planner", "none"]
    requirement: str | None = None
    keeps_rate: bool = False
    applies: Callable[[RunConfig], bool] = _always
    in_data: Callable[[RunConfig], bool] | None = None
    for_training: bool | None = None
    added: bool = False


FREE = ("model.template",)  # settings that are mappings, with names of the user's
NO_RESULT, PLANNER = Role("none"), Role("planner")
_TRAINING_EXAMPLES = Role("data", "task", for_training=True)
_TRAINING_FILE = Role("data", "task", applies=_reads_training_examples, for_training=True)
_TEST_EXAMPLES = Role("evaluation", "task", in_data=_always)
_WEIGHTS = Role("training", "model", for_training=False)
_METHOD_OF_TRAINING = Role("training", applies=_trained)
_BUDGET = Role("training", "budget", applies=_trained)
_STOP = Role("training", "budget", applies=_trained, added=True)
_MIXTURE = Role("data", "task", for_training=True, added=True)
_MEASURE = Role("training", "budget", keeps_rate=True, applies=_trained)
_TRAINING_NUMERICS = Role("training", "numerics", keeps_rate=True, applies=_trained)
_NUMERICS = Role("training", "numerics", keeps_rate=True)
_ALONG = Role("evaluation", applies=_measured_along)
_SHARING = Role("training", "device", keeps_rate=True, applies=_several_devices)


@cache
def roles() -> dict[str, Role]:
    """Dotted setting ("train.epochs") -> its role, in the order of definition; parts ("method.adapter") included."""
    return dict(_roles_below(RunConfig, "", None))


def role_of(setting: str) -> Role:
    """The role of a setting, or of the mapping that it is an entry of ("model.template.enable_thinking")."""
    known = roles()
    return known[setting] if setting in known else known[setting.rpartition(".")[0]]


def _roles_below(owner: type, prefix: str, of_part: Role | None) -> Iterator[tuple[str, Role]]:
    for name, hint in get_type_hints(owner, include_extras=True).items():
        role = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Role)), of_part)
        assert role, f"{prefix}{name}: no role; declare one with the field or its part"
        yield f"{prefix}{name}", role
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for part in filter(is_dataclass, members):
            yield from _roles_below(part, f"{prefix}{name}.", role)  # type: ignore[arg-type]


# --- The parts of a run ---

ModelType = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True, config=_STRICT)
class ArchitectureConfig:
    """A decoder of gated feed-forward layers and grouped attention under RMS norms."""

    model_type: ModelType
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    tie_word_embeddings: bool  # the output head is the embedding
    attention_bias: bool = False
    mlp_bias: bool = False


def _known_metric(name: str) -> str:
    if not is_own(name) and name not in METRICS:
        yours = "or MODULE:FUNCTION for one of your own, or evaluate:NAME_OR_FOLDER"
        raise ValueError(f"no such metric{suggest(name, [*METRICS])}; {yours}")
    return name


Metric = Annotated[str, AfterValidator(_known_metric)]
Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """A causal language model and where it comes from."""

    name: Name
    source: Literal["gguf_package", "hub", "folder", "random"]
    # hub id, folder (whose content counts, not its place), or the Python package that carries the GGUF file
    location: str = ""
    revision: str | None = None  # hub commit or tag; None is the newest
    # positions the model was trained for; solved examples and the suite's prompts must fit
    max_context: Annotated[PositiveInt, Role("evaluation", "model", in_data=_prompted)] = 2048
    parameters: Annotated[PositiveInt | None, PLANNER] = None  # counted from the architecture; for checks of space
    chat_template: str | None = None  # Jinja source for models that ship none; None keeps the model's own
    # options that the chat template reads, such as enable_thinking; `date`: the day that it is told
    template: dict[str, bool | int | float | str] = field(default_factory=dict)
    trust_remote_code: bool = False
    architecture: Annotated[ArchitectureConfig | None, PLANNER] = None  # None: from the model's config.json


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
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    init: Literal["default", "gaussian", "olora", "orthogonal", "pissa", "loftq"] = "default"  # as PEFT names them
    add_in_fp32: bool = True  # when not compiled, add the branch before rounding to bf16; see docs/fairness.md
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None  # LoRA+: B's learning rate / A's
    # when trained, keep this share of the intruder dimensions (PEFT's mitigation_lambda); None: all of them
    reduce_intruders: Annotated[Fraction | None, Role("training", keeps_rate=True, applies=_trained, added=True)] = None


@dataclass(frozen=True, config=_STRICT)
class MethodConfig:
    """What is trained, and how the frozen rest is kept. The only place where the methods differ."""

    name: Name
    trains: Literal["nothing", "all_weights", "adapter", "unknown"]  # unknown: its predictions are all there is of it
    # of `judge`: the folder or the file of predictions that somebody else's training left, in place of a training
    loaded_from: Annotated[str | None, NO_RESULT] = None
    other_base: Annotated[bool, NO_RESULT] = False  # of `judge` with several bases: it was trained on one of them
    weights_dtype: Dtype = "bfloat16"  # of the loaded weights; the master weights when all are trained
    quantization: QuantizationConfig | None = None
    adapter: AdapterConfig | None = None
    learning_rate: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None, Role("training", keeps_rate=True, applies=_trained)
    ] = None
    # all_weights: start fp32 master weights between the numbers of bf16; see docs/fairness.md
    dither: Annotated[bool, Role("training", applies=_all_weights)] = True
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"], _METHOD_OF_TRAINING
    ] = "adamw"
    # solved training examples shown in the prompt (base only)
    shots: Annotated[int, Field(ge=0), Role("evaluation", in_data=_prompted)] = 0
    # None: the same shots for every question, drawn by the seed; bm25: those with the nearest questions
    retrieval: Annotated[Literal["bm25"] | None, Role("evaluation", in_data=_prompted)] = None
    control: Annotated[bool, NO_RESULT] = False  # shows what the harness sees; no candidate for a recommendation


@dataclass(frozen=True, config=_STRICT)
class TaskConfig:
    """Prompt -> answer examples, their splits, and the metrics of the answers."""

    name: Name
    source: Literal["docstrings", "files", "hub"]
    prompt: str | None = "{prompt}"  # template over an example's columns; None: the columns tell the layout
    target: str | None = "{target}"
    # plain: prompt, answer, end of text, for a model without a chat template
    format: Literal["chat", "plain"] = "chat"
    # assistant turns that are learned; weights: those whose message has no weight of 0
    loss: Annotated[Literal["all", "last", "weights"], _TRAINING_EXAMPLES] = "all"
    test_turns: Annotated[Literal["last", "all"], _TEST_EXAMPLES] = "last"  # assistant turns that are tested
    system: str | None = None  # system message; None leaves the model's own default
    metrics: Annotated[list[Metric], Role("evaluation", "task")] = field(default_factory=lambda: ["exact_match"])
    max_new_tokens: Annotated[PositiveInt, _TEST_EXAMPLES] = 64
    train_examples: Annotated[PositiveInt | None, _TRAINING_EXAMPLES] = None  # None: all there are
    validation_examples: Annotated[PositiveInt | None, _TRAINING_EXAMPLES] = None
    test_examples: Annotated[PositiveInt | None, _TEST_EXAMPLES] = None
    # of the training examples: prose from docstrings, added to the task's own; None: none
    general_share: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, _MIXTURE] = None
    overflow: Annotated[Literal["error", "drop"], _TRAINING_EXAMPLES] = "error"  # longer than train.max_length
    overlap: Annotated[Literal["error", "drop"], _TRAINING_EXAMPLES] = "error"  # files: also in a split tested later
    # files or folders; their content counts (`ContentConfig`), not their place
    train_file: Annotated[str | None, NO_RESULT] = None
    validation_file: Annotated[str | None, NO_RESULT] = None  # None: cut from train_file, as the next
    test_file: Annotated[str | None, NO_RESULT] = None
    hub_dataset: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    train_split: Annotated[str, _TRAINING_EXAMPLES] = "train"
    validation_split: Annotated[str | None, _TRAINING_EXAMPLES] = None
    test_split: str | None = "test"  # training examples that are in it are left out
    # train on another set than the tested one (MetaMathQA -> GSM8K)
    train_hub_dataset: Annotated[str | None, _TRAINING_EXAMPLES] = None
    train_prompt: Annotated[str | None, _TRAINING_EXAMPLES] = None  # templates for that set; None: as for testing
    train_target: Annotated[str | None, _TRAINING_EXAMPLES] = None
    labels: list[str] | None = None  # allowed answers of the metric `label`; None: the training split's targets
    label_column: str | None = None  # integer class column, replaced by its name in `labels`
    # least shortfall from the best score that does not matter, in its unit; without it, 5% of that score alone
    tolerance_floor: Annotated[Annotated[float, Field(ge=0)], NO_RESULT] = 0.0

    def with_general(self, own_examples: int) -> int:
        """Training examples, general texts included, beside so many of the task's own."""
        return round(own_examples / (1 - (self.general_share or 0)))


@dataclass(frozen=True, config=_STRICT)
class SuiteConfig:
    """The general-capability regression suite: lm-eval tasks, the same items for base and tuned."""

    name: Name
    source: Literal["none", "quick", "lm_eval", "local"]
    tasks: list[str] = field(default_factory=list)
    items_per_task: PositiveInt | None = None  # None: all
    path: Annotated[str | None, NO_RESULT] = None  # local: folder with lm-eval YAML tasks, whose content counts
    # rows of 512 tokens scored together, more if shorter, fewer if longer; scores move with padding: the same for all
    batch_size: PositiveInt = 16


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """The budget and schedule shared by every method of a comparison."""

    max_length: Annotated[PositiveInt, Role("data", "budget")] = 1024  # tokens of prompt and answer together
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None  # optimizer steps, in as many epochs as they take; None: what `epochs` gives
    batch_size: PositiveInt = 16  # examples per optimizer step, whatever the micro-batch
    # examples per forward pass; auto: the most that fit
    micro_batch: Annotated[PositiveInt | Literal["auto"], Role("training", keeps_rate=True, applies=_trained)] = 4
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_fraction: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    heldout_points: Annotated[PositiveInt, _MEASURE] = 4  # held-out losses during training, the last at its end
    # of validation, the first in content order, which is a fixed shuffle; None: all there are
    heldout_examples: Annotated[PositiveInt | None, _MEASURE] = 256
    # stop behind so many of these points in a row without a new lowest loss, and keep the weights of then; None: never
    early_stopping_points: Annotated[PositiveInt | None, _STOP] = None
    untimed_steps: Annotated[int, Field(ge=0), _MEASURE] = 3  # warm-up steps left out of the speed
    gradient_checkpointing: Annotated[bool, _MEASURE] = False
    compile: Annotated[Literal["auto", "off", "regional"], _TRAINING_NUMERICS] = "auto"  # torch.compile by layer
    packing: Annotated[bool, _TRAINING_NUMERICS] = False  # micro-batch as one row; examples don't see one another
    # liger: Triton kernels for norms, rotations and MLPs (CUDA)
    kernels: Annotated[Literal["torch", "liger"], _TRAINING_NUMERICS] = "torch"
    # to go on from after a kill; None: no checkpoints. A resumed run ends as one that was never stopped
    checkpoint_every_steps: Annotated[PositiveInt | None, NO_RESULT] = None

    @property
    def fitted_micro_batch(self) -> int:
        """`micro_batch` as a number.

        Raises:
            ValueError: it is `auto`, which `sweep.execute` replaces before training.
        """
        if self.micro_batch == "auto":
            raise ValueError("train.micro_batch=auto has not been fitted yet")
        return self.micro_batch


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """What is measured beside the test split and the suite: along training (the base and the end always are), and of
    the weights."""

    # shares of the optimizer steps behind which the weights are kept and measured; empty: nothing along training
    points: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], Role("training", keeps_rate=True, applies=_measured_along)
    ] = field(default_factory=list)
    suite_items: Annotated[PositiveInt, _ALONG] = 20  # of each task of the suite, the first
    # of validation, the first: held-out loss, and KL from the base at their answers
    examples: Annotated[Annotated[int, Field(gt=1)], _ALONG] = 64
    answers: Annotated[bool, _ALONG] = False  # score greedy answers to these too
    weights: bool = False  # ranks of what training changed in each matrix, and its intruder dimensions:
    intruder_vectors: PositiveInt = 10  # among so many leading singular vectors,
    intruder_threshold: Fraction = 0.5  # those whose largest cosine with the base's is below


DeviceName = Literal["auto", "cpu", "cuda", "xpu", "mps"]  # cuda: AMD's by ROCm too
Strategy = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
DEEPSPEED = ("zero2", "zero3")
CUTS_WEIGHTS = ("fsdp", "zero3")


@dataclass(frozen=True, config=_STRICT)
class HardwareConfig:
    """The machine, its limits and its price."""

    name: Annotated[Name, NO_RESULT]
    device: Annotated[DeviceName, Role("training", "device", keeps_rate=True)] = "auto"
    compute_dtype: Annotated[Literal["auto", "bfloat16", "float32"], _NUMERICS] = "auto"  # of the autocast region
    attention: Annotated[Literal["auto", "sdpa", "products", "flash_attention_2", "eager"], _NUMERICS] = "auto"
    # None: every core this process may use
    threads: Annotated[PositiveInt | None, Role("training", "threads", keeps_rate=True)] = None
    # test prompts decoded together, of 512 tokens with their longest answer; more shorter ones, fewer longer ones
    generate_batch: Annotated[PositiveInt, Role("evaluation", "hardware")] = 64
    stage_timeout_seconds: Annotated[PositiveInt, NO_RESULT] = 86_400
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = None  # of a child's private memory (RLIMIT_DATA)
    # refuse, before anything is downloaded, what the planner says does not fit the GPU; on a CPU it is said alone
    check_memory: Annotated[bool, NO_RESULT] = True
    # train.micro_batch=auto: of training's peak; None: nine tenths of the device's memory
    memory_budget_gib: Annotated[
        Annotated[float, Field(gt=0)] | None, Role("training", keeps_rate=True, applies=_trained)
    ] = None
    price_usd_per_hour: Annotated[Annotated[float, Field(ge=0)] | None, NO_RESULT] = None
    devices: Annotated[PositiveInt, _SHARING] = 1  # share every training step, one process each; docs/gpu.md
    strategy: Annotated[Strategy, _SHARING] = "none"  # how they share it
    cpu_offload: Annotated[bool, _SHARING] = False  # cut weights and optimizer state wait in host memory
    # Of one device, from its data sheet; None: unknown.
    memory_gib: Annotated[Annotated[float, Field(gt=0)] | None, PLANNER] = None
    bf16_tflops: Annotated[Annotated[float, Field(gt=0)] | None, PLANNER] = None  # dense products, 10^12 FLOP/s
    watts: Annotated[Annotated[float, Field(gt=0)] | None, PLANNER] = None


@dataclass(frozen=True, config=_STRICT)
class TrackingConfig:
    """Where a finished record is sent besides its folder."""

    name: Name
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

    name: Name = "none"
    prompt_tokens: list[PositiveInt] = field(default_factory=list)  # lengths of prompts; empty: nothing is served
    batch_sizes: list[PositiveInt] = field(default_factory=lambda: [1])  # requests answered together
    new_tokens: Annotated[int, Field(gt=1)] = 16  # of every answer; the end token is kept from coming
    repetitions: PositiveInt = 5  # of every form in turn, each loaded anew
    fidelity_examples: Annotated[int, Field(ge=0)] | None = None  # test examples that each form answers; None: all
    adapters: list[PositiveInt] = field(default_factory=list)  # numbers of adapters on one base; empty: not measured


@dataclass(frozen=True, config=_STRICT)
class ContentConfig:
    """What the inputs of a run hold, which names it in place of their paths: the beginning of a SHA-256, in hex.

    Filled in by `compose` from `identity.content_of`, and held against the inputs again when a stage starts. None: the
    run has no such input, or the hub has it under the name and revision that the settings give.
    """

    train_file: Annotated[str | None, _TRAINING_FILE] = None  # with the names of the splits that are cut from it
    validation_file: Annotated[str | None, _TRAINING_FILE] = None
    test_file: Annotated[str | None, _TEST_EXAMPLES] = None  # of the training file, where the test split is cut from it
    packages: str | None = None  # versions of the packages that the embedded task is read from
    tokenizer: Annotated[str | None, Role("data", "model")] = None  # with chat templates and code
    architecture: Annotated[str | None, _WEIGHTS] = None  # config.json, and the defaults of generation
    weights: Annotated[str | None, _WEIGHTS] = None
    suite: Annotated[str | None, Role("evaluation", "suite")] = None  # files, or versions of the packages read
    metrics: Annotated[str | None, Role("evaluation", "task")] = None  # code of metrics of the user's own
    loaded: Annotated[str | None, Role("evaluation", applies=_loaded)] = None  # of `method.loaded_from`


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """One run. Equal configs give equal run ids (`identity.run_id`)."""

    model: Annotated[ModelConfig, Role("data", "model")]
    method: Annotated[MethodConfig, Role("training")]
    task: Annotated[TaskConfig, Role("data", "task")]
    suite: Annotated[SuiteConfig, Role("evaluation", "suite")]
    train: Annotated[TrainConfig, _BUDGET]
    hardware: Annotated[HardwareConfig, Role("training", "hardware", keeps_rate=True)]
    tracking: Annotated[TrackingConfig, NO_RESULT]
    paths: Annotated[PathsConfig, NO_RESULT] = field(default_factory=PathsConfig)
    seed: Annotated[
        int, Field(ge=0, lt=2**31),
        Role("training", keeps_rate=True, applies=_seeded, in_data=_drawn),
    ] = 0  # fmt: skip
    sweep: Annotated[Name, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"), NO_RESULT] = "default"
    rates: Annotated[str | None, NO_RESULT] = None  # file of `tune` that the learning rate is taken from
    learning_rate_source: Annotated[str, NO_RESULT] = "config"  # or "tuned: FILE sha256 ..."; filled in by `compose`
    # true: a trial of `tune`, which trains and measures held-out loss, evaluates nothing and keeps no weights
    trial: Annotated[Literal[True] | None, Role("training", "budget", keeps_rate=True)] = None
    serve: Annotated[ServeConfig, Role("serving")] = field(default_factory=ServeConfig)
    evaluation: Annotated[EvaluationConfig, Role("evaluation", applies=_weighed)] = field(
        default_factory=EvaluationConfig
    )
    content: Annotated[ContentConfig, Role("data", "task")] = field(default_factory=ContentConfig)

    @property
    def untrained(self) -> bool:
        """Whether the run trains nothing: the base model as it is, or what was trained elsewhere."""
        return self.method.trains == "nothing" or self.method.loaded_from is not None


# --- Reading and writing ---


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The JSON form of a run description; `mistakes.from_mapping` reads it back unchanged."""
    mapping: dict[str, Any] = TypeAdapter(RunConfig).dump_python(config, mode="json")
    return mapping


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping stays a value."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return result


def suggest(given: str, allowed: list[str]) -> str:
    """' (did you mean x?); allowed: ...' for an unknown name."""
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{hint}; allowed: {', '.join(sorted(allowed))}" if allowed else hint
