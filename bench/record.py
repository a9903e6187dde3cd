"""What one run produced. `record.json` is a `Record`; it is written last, and marks the run as finished.

Names carry their units. Unknown is `None`, never zero. Files beside the record hold the details:

    plan.json                   the RunConfig that ran
    fit.json                    a `Fit`, where train.micro_batch=auto
    expected.json               an `Expected`, written before the first run of a sweep starts
    train.json evaluate.json regression.json    one stage each, written by its child process
    steps.jsonl                 one `Step` a line
    samples.jsonl.gz            one `Sample` a line: test predictions with scores
    regression_items.jsonl.gz   one `RegressionItem` a line
    weights.json, weight_changes.jsonl.gz       where evaluation.weights is set; one `MatrixChange` a line
    frontier.json, frontier_items.jsonl.gz      where evaluation.points is set; one `PointItem` a line
    serve.json, served_answers.jsonl.gz         where serving was asked for; one `ServedAnswer` a line
    train.log evaluate.log regression.log       what the child printed
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from bench.config import Name, RunConfig
from bench.metrics import Scale
from bench.outcome import Failure, Status
from bench.served import Adapters, Fidelity, Generation, ServedForm

_STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="null")


@dataclass(frozen=True, config=_STRICT)
class Fit:
    """The micro-batch that `train.micro_batch=auto` came to."""

    micro_batch: int  # that ran: the planner's, halved as often as memory ran out
    budget_bytes: int | None  # planned for; None: unknown
    too_large: list[int] = field(default_factory=list)  # micro-batches tried before, for which memory ran out


SCHEMA_VERSION = 3
KL_METRIC = "kl_from_base"  # of a `RegressionTask`: KL(base || model), nats a token
HELDOUT, TASK_KL = "heldout", "task_kl"  # tasks of a `Point`
T = TypeVar("T")
# The name of a folder inside another.
RunId = Annotated[str, Field(pattern=r"^[^/\x00-\x1f]*[^/.\x00-\x1f][^/\x00-\x1f]*$", max_length=255)]


@dataclass(frozen=True, config=_STRICT)
class Step:
    """One optimizer step."""

    step: int  # from 1
    loss: float | None  # nats per supervised token, of all tokens of the effective batch; None: not finite
    gradient_norm: float | None  # before clipping
    learning_rate: float
    seconds: float  # wall time of the step, device synchronized at both edges
    tokens: int  # non-padding tokens
    supervised_tokens: int
    positions: int  # with padding
    elapsed_seconds: float  # training time at its end: the sum of `seconds` until here
    timed: bool  # False for warm-up steps, which are left out of the speed
    memory_bytes: int | None = None  # held at its end. CUDA: allocated. CPU: resident
    peak_so_far_bytes: int | None = None  # the highest of the training phase until here, as `PhaseMemory.peak_bytes`


@dataclass(frozen=True, config=_STRICT)
class HeldoutPoint:
    """Held-out loss on the validation split at one moment of training."""

    step: int  # 0: before the first step
    train_tokens: int  # non-padding tokens seen until here
    train_seconds: float  # training time until here, held-out evaluation excluded
    loss: float | None  # sum of token losses / supervised tokens, nats; None: not finite
    energy_wh: float | None = None  # of training until here, held-out evaluation excluded; None: no counter


@dataclass(frozen=True, config=_STRICT)
class PhaseMemory:
    """Peak memory of one phase (load, train, evaluate, ...), reset at its start. CUDA: summed over visible devices."""

    phase: str
    peak_bytes: int | None  # CUDA: max allocated. CPU: VmHWM of the process; None where it cannot be reset
    above_start_bytes: int | None  # CPU: the peak less what was resident before the model was loaded
    peak_reserved_bytes: int | None = None  # CUDA allocator
    device_used_bytes: int | None = None  # NVML, this process; None where NVML does not tell processes apart
    anonymous_bytes: int | None = None  # CPU, at the end of the phase: RssAnon (without memory-mapped files)


@dataclass(frozen=True, config=_STRICT)
class MemoryBreakdown:
    """Static training memory, summed over tensors at the first optimizer step's end."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int


@dataclass(frozen=True, config=_STRICT)
class DeviceShare:
    """What one of several devices that trained together did. Its process's rank is its place in the list."""

    rank: int
    peak_bytes: int | None  # of the phase "train", as `PhaseMemory.peak_bytes`
    tokens_per_second: float | None  # its part of `train_tokens_per_second`: they add up to it
    breakdown: MemoryBreakdown | None = None  # what it holds itself


@dataclass(frozen=True, config=_STRICT)
class Environment:
    """Where a stage ran. Comparisons of speed need these to be equal."""

    device: str  # "cpu: AMD EPYC" or "cuda: NVIDIA H100"
    device_count: int
    threads: int | None
    compute_dtype: str
    attention: str
    compiled: str  # "regional", "off", or "off: REASON"
    torch: str
    load_average_1min_at_start: float | None = None  # counts the run itself: for a person, never judged by
    cpus: int | None = None  # processors that the process may use
    cpu_affinity: str | None = None  # which ones: "0-15,32"
    cpu_governor: str | None = None  # None: not visible (most virtual machines)
    other_cpu_cores: float | None = None  # of these, kept busy by other processes while it was measured, on average
    stolen_cpu_cores: float | None = None  # processors' worth of time that the hypervisor gave to others meanwhile
    other_gpu_processes: int | None = None  # that computed on the device too, at the start or at the end


@dataclass(frozen=True, config=_STRICT)
class Made:
    """When, from what, by which program and on which machine a stage made its result; written by the parent."""

    started_at: str | None  # ISO 8601, UTC; None: unknown
    wall_seconds: float  # child start to exit
    provenance: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)  # split -> its fingerprint; "weights" -> digest of those read


@dataclass(frozen=True, config=_STRICT)
class TrainResult:
    """The training stage."""

    data_stream_sha256: str  # over the exact (input_ids, labels) consumed, in order
    steps: int
    examples: int
    tokens: int
    supervised_tokens: int
    positions: int
    timed_steps: int
    train_tokens_per_second: float | None  # None when no step was timed
    supervised_tokens_per_second: float | None
    positions_per_second: float | None
    step_seconds_median: float | None
    step_seconds_p90: float | None
    step_seconds_p99: float | None
    train_seconds: float  # all optimizer steps
    compile_seconds: float | None  # first steps beyond the median, when compiled
    heldout: list[HeldoutPoint]
    parameters_total: int
    parameters_trainable: int
    trainable_dtype: str
    checkpoint_bytes: int | None  # None: a trial, which keeps no weights
    checkpoint_dtype: str
    memory: list[PhaseMemory]
    breakdown: MemoryBreakdown | None
    spans_seconds: dict[str, float]  # named, never subtracted
    environment: Environment
    needed_flops_per_second: float | None = None  # of the timed steps: what the method needs, not what was done
    matmul_peak_flops_per_second: float | None = None  # measured on this device in the compute dtype
    mfu: float | None = None  # the quotient of the two
    energy_wh: float | None = None  # of the phase "train", held-out evaluation excluded; None: no counter
    model_revision: str | None = None  # hub commit of the base that was loaded; None for local models
    parameters_quantized: int | None = None  # of the base, stored in 4 or 8 bit; None: not counted
    step_memory: list[PhaseMemory] = field(default_factory=list)  # by part of one warm-up step; no longer measured
    devices: int = 1  # that shared every step; memory above is then the sum over them, speed that of all together
    strategy: str = "none"  # how they shared it
    per_device: list[DeviceShare] = field(default_factory=list)  # empty: one device
    micro_batch: int | None = None  # examples per forward pass; None: unknown
    resumed_at_steps: list[int] = field(default_factory=list)  # steps done when it went on after a stop; empty: never
    weights: dict[str, str] = field(default_factory=dict)  # file that training wrote -> SHA-256; empty: unknown, none
    made: Made | None = None  # None: the parent did not see the end of the stage; as in the results below
    heldout_examples: int | None = None  # that every held-out loss is over; None: unknown
    heldout_left_out: int | None = None  # validation examples beyond train.heldout_examples; None: unknown


@dataclass(frozen=True, config=_STRICT)
class EvaluateResult:
    """The task evaluation stage on the test split."""

    examples: int
    scores: dict[str, float]  # name -> mean over the examples that have it; the first is the primary score
    heldout_loss: float | None  # test split, sum of token losses / supervised tokens
    heldout_tokens: int | None  # as the next three None of predictions that were given
    generated_tokens: int | None
    generate_tokens_per_second: float | None
    cut_at_limit: int | None  # predictions that reached max_new_tokens
    memory: list[PhaseMemory]
    spans_seconds: dict[str, float]
    environment: Environment
    scales: dict[str, Scale] = field(default_factory=dict)  # name of a score -> its range and direction
    unscored: dict[str, str] = field(default_factory=dict)  # metric -> on how many examples it failed, and why first
    model_revision: str | None = None  # hub commit of the base that was loaded; None for local models
    made: Made | None = None
    blind: dict[str, int] = field(default_factory=dict)  # metric -> references that it does not score best themselves
    prompt_tokens: int | None = None  # of all test prompts, solved examples included


@dataclass(frozen=True, config=_STRICT)
class RegressionTask:
    """One task of the regression suite."""

    task: str
    metric: str  # acc, exact_match, bits_per_byte, ...
    value: float | None  # None: not finite, because a score of its items is not
    items: int
    higher_is_better: bool
    chance: float | None = None  # score of guessing
    items_available: int | None = None  # that the task has; None: no task of a suite, or an older record


@dataclass(frozen=True, config=_STRICT)
class RegressionResult:
    """The regression stage."""

    suite: str
    tasks: list[RegressionTask]
    memory: list[PhaseMemory]
    spans_seconds: dict[str, float]
    environment: Environment
    divergence_unknown: str | None = None  # why the divergence from the base is not among the tasks
    made: Made | None = None
    contaminated: dict[str, int] = field(default_factory=dict)  # task -> items that training examples hold a part of


@dataclass(frozen=True, config=_STRICT)
class Point:
    """What was learned and forgotten at one point of training."""

    step: int  # 0: the untouched base in 16 bit, whatever the method
    # `HELDOUT`: loss and scores on validation examples; the first items of the suite's tasks; KL from the base on
    # general text and, `TASK_KL`, at the answers of the validation examples
    values: list[RegressionTask]


@dataclass(frozen=True, config=_STRICT)
class FrontierResult:
    """The frontier stage: the same measurements at points along training, in the order of the steps."""

    points: list[Point]
    memory: list[PhaseMemory]
    spans_seconds: dict[str, float]
    environment: Environment
    made: Made | None = None


@dataclass(frozen=True, config=_STRICT)
class MatrixChange:
    """One line of `weight_changes.jsonl.gz`: what training changed in one matrix. None: no change, or too large."""

    name: str
    layer: int | None
    rows: int
    columns: int
    relative_norm: float  # Frobenius norm of the change / of the base's matrix
    stable_rank: float | None  # squared Frobenius norm / squared largest singular value
    effective_rank: float | None  # exponential of the entropy of the singular values' shares (Roy and Vetterli 2007)
    rank_90: int | None  # leading singular values that hold 90% of their squares' sum
    intruders: int  # of the tuned matrix's leading singular vectors, those that are none of the base's


@dataclass(frozen=True, config=_STRICT)
class WeightsResult:
    """The weights stage."""

    matrices: int  # that were trained
    memory: list[PhaseMemory]
    spans_seconds: dict[str, float]
    environment: Environment
    made: Made | None = None


@dataclass(frozen=True, config=_STRICT)
class ServeResult:
    """The serving stage: every form of the result, timed and set against the one that was evaluated."""

    settings: dict[str, Any]  # the ServeConfig that was asked for
    forms: list[ServedForm]
    generations: list[Generation]  # every repetition
    fidelity: list[Fidelity]  # the first is the form that was evaluated; empty: an untrained model, or not asked for
    adapters: Adapters | None  # None: the method has none, or not asked for
    skipped: dict[str, str]  # what was asked for and not measured -> why
    memory: list[PhaseMemory]  # phases "load FORM", "serve FORM", "N adapters", ...
    spans_seconds: dict[str, float]
    environment: Environment  # while the latency was measured
    made: Made | None = None  # the serving may be later than the run
    price_usd_per_hour: float | None = None  # of the machine, as the serving's command stated it


@dataclass(frozen=True, config=_STRICT)
class Sample:
    """One test example with its prediction."""

    example_id: str
    prompt: str
    reference: str
    prediction: str
    scores: dict[str, float]
    loss: float | None  # of the reference answer, nats summed over `loss_tokens`
    loss_tokens: int
    cut_at_limit: bool | None  # None: unknown
    unscored: dict[str, str] = field(default_factory=dict)  # metric -> why it gave no score


@dataclass(frozen=True, config=_STRICT)
class RegressionItem:
    """One regression item. `score` is averaged, weighted by `weight`, into the task's value."""

    task: str
    item_id: str
    metric: str
    score: float | None  # 0/1 for accuracy; bits per byte of the document for bits_per_byte; None: not finite
    weight: float = 1.0  # bytes of the document for bits_per_byte


@dataclass(frozen=True, config=_STRICT)
class PointItem:
    """One line of `frontier_items.jsonl.gz`: a `RegressionItem` at one point of training."""

    step: int
    task: str
    item_id: str
    metric: str
    score: float | None
    weight: float = 1.0


@dataclass(frozen=True, config=_STRICT)
class Overlap:
    """Examples of a split that the same or another split holds earlier; each counts once."""

    split: str
    of: str
    same: int  # prompt and answer
    same_prompt: int  # but for case and spaces, with another answer
    near: int  # at least 0.8 of the triples of words and symbols (Jaccard)
    examples: list[str]  # the first of each kind


@dataclass(frozen=True, config=_STRICT)
class DataCheck:
    """What the prepared data hold (`bench.worker.check`)."""

    overlaps: list[Overlap]
    contaminated: int  # test examples that share 13 words in a row with a training example
    contaminated_examples: list[str]  # the first
    too_short: int  # test examples of fewer than 8 words, of which that cannot be told
    longer_than: dict[int, int]  # tokens -> examples of all splits that are longer
    answers_per_example_mean: float  # that carry loss, in the training split
    answers_per_example_max: int
    supervised_share: float  # of the training split's tokens
    distinct_targets: int  # in the training split
    commonest_target: str
    commonest_target_examples: int
    unseen_labels: int | None  # test examples with a label that no training example has; None: targets are no labels


@dataclass(frozen=True, config=_STRICT)
class DataSummary:
    """What the prepared data holds; every dropped example is counted here."""

    fingerprint: str  # SHA-256 over all tokenized splits
    train_examples: int
    validation_examples: int
    test_examples: int
    dropped: dict[str, int]  # reason -> examples
    tokens_per_example_mean: float
    tokens_per_example_max: int
    source: str  # where it came from, for a person
    fingerprints: dict[str, str] = field(default_factory=dict)  # by split; of the test split over its texts
    labels: list[str] | None = None  # of the metric `label`, where the training split's targets are the labels
    repeated_prompts: int | None = None  # of the test split, that training holds but for case, spaces or the answer
    check: DataCheck | None = None
    retrieval_seconds: float | None = None  # of the examples shown to all test questions; None: none were retrieved
    test_available: int | None = None  # where task.test_examples leaves some out: how many there are


@dataclass(frozen=True, config=_STRICT)
class Speed:
    """What a probe of the untouched base measured on a device (`worker.prepare`); kept in the cache."""

    load_seconds: float  # imports and weights, of one stage
    forward_seconds_per_token: float  # of held-out losses, uncompiled; non-padding tokens
    answers_seconds: float  # of one batch of answers that all have task.max_new_tokens
    answers: int  # in that batch
    suite_seconds: float | None = None  # at these speeds, its answers at full length; None: no suite was asked for
    suite_items: int | None = None  # of its largest task


@dataclass(frozen=True, config=_STRICT)
class Expected:
    """What a run was expected to take before it started; None: unknown."""

    seconds: dict[str, float | None]  # part of the run (`planner.time.PARTS`) -> wall seconds
    peak_memory_bytes: int | None  # the planner's; None for an untrained run too
    download_bytes: int


@dataclass(frozen=True, config=_STRICT)
class Record:
    """One finished run, whatever its status."""

    run_id: RunId
    comparison_key: str
    sweep: Name
    method: Name
    model: Name
    task: Name
    suite: Name
    seed: int
    status: Status
    config: RunConfig
    provenance: dict[str, Any]  # versions, git commit, command, machine of the call that finished it; by stage: `Made`
    started_at: str  # ISO 8601, UTC; of that call
    wall_seconds: float  # of that call, and of the stages that earlier ones made
    data: DataSummary | None = None
    fit: Fit | None = None  # None: train.micro_batch was given as a number
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None
    regression: RegressionResult | None = None
    frontier: FrontierResult | None = None
    weights: WeightsResult | None = None
    failure: Failure | None = None
    stage_wall_seconds: dict[str, float] = field(default_factory=dict)  # child start to exit, by stage, reused ones too
    reused_stages: list[str] = field(default_factory=list)  # of an earlier, interrupted call, or of another sweep
    serve: ServeResult | None = None  # None: not asked for, or `serve_failure` says why not
    serve_failure: Failure | None = None  # serving that failed takes nothing from the run: its status stays ok
    expected: Expected | None = None  # None: nothing was expected: a search, or an older record
    # what a folder that was trained elsewhere says of its training: fact (file) -> value; None: nothing says it
    elsewhere: dict[str, str | None] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def to_json(value: Any) -> str:
    """A record or any of its parts as JSON, indented, keys in the order of definition."""
    return TypeAdapter(type(value)).dump_json(value, indent=1).decode()


def from_json(kind: type[T], text: str | bytes) -> T:
    """Read back what `to_json` wrote.

    Raises:
        pydantic.ValidationError: when the text is not a complete `kind`.
    """
    return TypeAdapter(kind).validate_json(text)
