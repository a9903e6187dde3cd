"""A sweep's folders as tidy DataFrames: one row a run, an arm, a step, a held-out loss, a test answer, a suite item.

Every number that a table, a chart, a claim or the decision shows is read here, so each has one definition. Columns
carry their units; unknown is NaN or None, never 0. A folder that is still being written, a torn record or a cut gzip
file lose only themselves and are listed in `Sweep.problems`.

    >>> from bench import load
    >>> sweep = load("results/reference")
    >>> sweep.arms[["arm", "seeds", "score", "peak_memory_bytes", "train_seconds"]]
    >>> [group.name for group in groups(sweep)]
    ['smollm2-135m / docstrings / quick']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from bench.compose import RATES_FILE, Tuning, read_rates
from bench.config import RunConfig
from bench.fairness import STAGES, disturbances
from bench.identity import names_of_arms
from bench.mistakes import first_mistake
from bench.planner.memory import CUDA_PROCESS_BYTES
from bench.record import (
    DataSummary,
    EvaluateResult,
    HeldoutPoint,
    MatrixChange,
    PointItem,
    Record,
    RegressionItem,
    Sample,
    Step,
    TrainResult,
    from_json,
)
from bench.served import ServedAnswer
from bench.stats.reading import Problem, read_record, read_rows

SETTLED_FILE = "settled.json"
_RUN = ["run_id", "arm", "method", "seed"]
_FAMILIES = ("base", "prompted", "base_4bit", "full", "lora", "qlora", "predictions")  # in the order of tables
_TRAIN = {  # field of `TrainResult` -> column, where the name alone would not say which stage it belongs to
    "train_tokens_per_second": "tokens_per_second",
    "examples": "train_examples",
    "tokens": "train_tokens",
    "positions": "train_positions",
    "supervised_tokens": "train_supervised_tokens",
}
_NO_COLUMNS = {"heldout", "memory", "breakdown", "spans_seconds", "environment", "step_memory", "per_device",
               "resumed_at_steps"}  # fields of `TrainResult` with more than one value  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """What `bench settle` writes beside the runs: folders of runs that its last look leaves out, and why, in words."""

    runs: list[str]
    said: list[str]


@dataclass(frozen=True, eq=False)
class Sweep:
    """One or several sweep folders in memory."""

    folders: list[Path]
    records: list[Record] = field(default_factory=list)
    step_rows: dict[str, list[Step]] = field(default_factory=dict)  # by run_id, as the next three
    sample_rows: dict[str, list[Sample]] = field(default_factory=dict)
    regression_rows: dict[str, list[RegressionItem]] = field(default_factory=dict)
    answer_rows: dict[str, list[ServedAnswer]] = field(default_factory=dict)  # of every served form
    problems: list[Problem] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)  # searches of learning rates, from the folders' rates.yaml
    point_rows: dict[str, list[PointItem]] = field(default_factory=dict)  # by run_id, of every point along training
    change_rows: dict[str, list[MatrixChange]] = field(default_factory=dict)  # of every matrix that was trained
    said: list[str] = field(default_factory=list)  # what `bench settle` did, a sentence each

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run (`runs_frame`)."""
        return runs_frame(self.records)

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row an arm (`arms_frame`)."""
        return arms_frame(self.runs)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """run_id, arm, method, seed and the fields of `Step`; one row an optimizer step."""
        return self._details(self.step_rows, [f.name for f in fields(Step)])

    @cached_property
    def heldout(self) -> pd.DataFrame:
        """run_id, arm, method, seed and the fields of `HeldoutPoint`; one row a held-out loss."""
        points = {record.run_id: record.train.heldout for record in self.records if record.train}
        return self._details(points, [f.name for f in fields(HeldoutPoint)])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """run_id, arm, method, seed, the fields of `Sample`, its scores as score_<metric>; one row a test answer."""
        frame = self._details(self.sample_rows, [f.name for f in fields(Sample)])
        scores = pd.DataFrame(list(frame["scores"]), index=frame.index).add_prefix("score_")
        return frame.drop(columns="scores").join(scores)

    @cached_property
    def regression(self) -> pd.DataFrame:
        """run_id, arm, method, seed and the fields of `RegressionItem`; one row an item of the suite."""
        return self._details(self.regression_rows, [f.name for f in fields(RegressionItem)])

    @cached_property
    def changes(self) -> pd.DataFrame:
        """run_id, arm, method, seed and the fields of `MatrixChange`; one row a trained matrix."""
        return self._details(self.change_rows, list(MatrixChange.__annotations__))

    def _details(self, rows: Mapping[str, Iterable[Any]], names: list[str]) -> pd.DataFrame:
        """Rows of each record in turn, led by the columns that name the run."""
        arm_of = arm_names(self.records)
        table = [
            (record.run_id, arm_of[record.run_id], record.method, record.seed, *(getattr(row, n) for n in names))
            for record in self.records
            for row in rows.get(record.run_id, ())
        ]
        return pd.DataFrame(table, columns=[*_RUN, *names])


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one model, task and suite, which are compared and decided between. `stats.compare` and
    `stats.decide` take a group; both keep their last results, so that every section may ask again.

    Attributes:
        runs, arms, samples, regression: the group's rows of the sweep's frames; failed runs included.
        by_arm: arm -> its runs that finished an evaluation, by seed, in display order; of two runs of one seed the
            later one.
        allowed: what compared runs may differ in, by name (`--allow-different`).
        target_loss: held-out, as given for the report; None: each comparison's default.
    """

    name: str
    sweep: Sweep
    records: list[Record]
    runs: pd.DataFrame
    arms: pd.DataFrame
    samples: pd.DataFrame
    regression: pd.DataFrame
    by_arm: dict[str, list[Record]]
    allowed: frozenset[str] = frozenset()
    target_loss: float | None = None

    @cached_property
    def arm_of(self) -> dict[str, str]:
        """run_id -> the name of its arm."""
        return dict(zip(self.runs["run_id"], self.runs["arm"], strict=True))

    def stages(self) -> Iterator[tuple[str, str, Any]]:
        """(arm, stage, its result) of every run that finished the stage; serving apart."""
        for record in self.records:
            for name in ("train", "evaluate", "regression"):
                if result := getattr(record, name):
                    yield self.arm_of[record.run_id], name, result

    def without_controls(self) -> Group:
        """The group as charts show it: a model that was wrecked on purpose would set their scales."""
        records = [record for record in self.records if not record.config.method.control]
        return _group(self.name, self.sweep, records, self.allowed, self.target_loss)


def groups(sweep: Sweep, *, allowed: frozenset[str] = frozenset(), target_loss: float | None = None) -> list[Group]:
    """The sweep's records by model, task and suite, in that order."""
    by_key: dict[tuple[str, str, str], list[Record]] = {}
    for record in sweep.records:
        by_key.setdefault((record.model, record.task, record.suite), []).append(record)
    return [_group(" / ".join(key), sweep, by_key[key], allowed, target_loss) for key in sorted(by_key)]


def _group(name: str, sweep: Sweep, records: list[Record], allowed: frozenset[str], target_loss: float | None) -> Group:
    wanted = [record.run_id for record in records]
    runs, samples, regression = (
        frame[frame["run_id"].isin(wanted)] for frame in (sweep.runs, sweep.samples, sweep.regression)
    )
    arm_of = dict(zip(runs["run_id"], runs["arm"], strict=True))
    by_seed: dict[str, dict[int, Record]] = {arm: {} for arm in runs["arm"]}
    for record in sorted(records, key=lambda record: (record.seed, record.started_at)):
        if record.evaluate or record.regression:
            by_seed[arm_of[record.run_id]][record.seed] = record
    by_arm = {arm: list(of_seed.values()) for arm, of_seed in by_seed.items() if of_seed}
    arms = sweep.arms[(sweep.arms["group"] == name) & sweep.arms["arm"].isin(arm_of.values())]
    return Group(name, sweep, records, runs, arms, samples, regression, by_arm, allowed, target_loss)


# --- Reading folders ---


_DETAILS: dict[str, tuple[Any, str]] = {  # field of `Sweep` -> what a line of the file beside each record holds
    "step_rows": (Step, "steps.jsonl"),
    "sample_rows": (Sample, "samples.jsonl.gz"),
    "regression_rows": (RegressionItem, "regression_items.jsonl.gz"),
    "answer_rows": (ServedAnswer, "served_answers.jsonl.gz"),
    "change_rows": (MatrixChange, "weight_changes.jsonl.gz"),
    "point_rows": (PointItem, "frontier_items.jsonl.gz"),
}


def load(*folders: str | Path) -> Sweep:
    """Read every run below the folders, each that of a sweep or of a run; a run found twice is read once.

    Raises:
        FileNotFoundError: when a folder does not exist.
    """
    if not folders:
        raise TypeError("load() needs at least one sweep folder, for example load('results/default')")
    sweep = Sweep([Path(folder) for folder in folders])
    if missing := [folder for folder in sweep.folders if not folder.is_dir()]:
        raise FileNotFoundError(f"{missing[0]}: no such folder; a sweep's results are in results/<sweep>")
    known: dict[str, Record] = {}
    for folder in sweep.folders:
        left_out = _left_out(folder)
        sweep.said.extend(left_out.said)
        for run in [folder] if (folder / "record.json").is_file() else sorted(folder.iterdir()):
            record = None if run.name in left_out.runs else read_record(run, sweep.problems)
            if record is None:
                continue
            shown = known.setdefault(record.run_id, record)
            if shown is record:
                for rows, (kind, name) in _DETAILS.items():
                    getattr(sweep, rows)[record.run_id] = read_rows(kind, run / name, sweep.problems)
            elif record.started_at != shown.started_at:  # by another commit or later: not the same measurement
                reason = f"the same run, started {record.started_at}, is left out: that of {shown.started_at} is shown"
                sweep.problems.append(Problem(run.name, "record.json", reason, "Report each sweep by itself."))
        try:
            sweep.tunings.extend(read_rates(folder / RATES_FILE).tunings)
        except FileNotFoundError:
            pass  # the sweep used no file of `tune`
        except (ValueError, OSError) as error:
            step = "Copy the file of `make tune` there again, or run the sweep's command again."
            reason = f"unreadable rates: {first_mistake(error)}"
            sweep.problems.append(Problem(folder.name, RATES_FILE, reason, step))
    sweep.records.extend(known.values())
    return sweep


def _left_out(folder: Path) -> LeftOut:
    try:
        return from_json(LeftOut, (folder / SETTLED_FILE).read_bytes())
    except (OSError, ValidationError):  # an ordinary sweep
        return LeftOut([], [])


# --- What a run is ---


def family(record: Record) -> str:
    """The method by what is trained and how the base is kept, whatever its name.

    One of base, prompted (untrained, with solved examples in the prompt), base_4bit (untrained and quantized), full,
    lora, qlora (an adapter over a quantized base), predictions (of something unknown).
    """
    method = record.config.method
    quantized = method.quantization is not None
    if method.trains == "nothing":
        return "prompted" if method.shots else "base_4bit" if quantized else "base"
    if method.trains == "unknown":
        return "predictions"
    return "full" if method.trains == "all_weights" else "qlora" if quantized else "lora"


def arm_names(records: Iterable[Record]) -> dict[str, str]:
    """run_id -> the name of its arm: its method, with the settings that vary within one model, task and suite."""
    by_group: dict[tuple[str, str, str], list[tuple[str, str, RunConfig]]] = {}
    for record in records:
        key = (record.model, record.task, record.suite)
        by_group.setdefault(key, []).append((record.run_id, record.method, record.config))
    return {run: name for members in by_group.values() for run, name in names_of_arms(members).items()}


def peak_memory_bytes(train: TrainResult) -> int | None:
    """The most that one device must have: the highest over the phases of the training stage and over the devices.

    CUDA: max(reserved + context, NVML's use by the process), the context as the planner assumes it, since it cannot be
    read; records that know no reserved memory: allocated + context. Records sum the phases over the devices: the
    largest device's part is then that of its allocated peak. CPU: the resident set of all processes together.
    None where the phase "train" has no peak.
    """
    if not any(entry.phase == "train" and entry.peak_bytes is not None for entry in train.memory):
        return None
    if train.environment.device.startswith("cpu"):
        return max(entry.peak_bytes for entry in train.memory if entry.peak_bytes is not None)
    context = CUDA_PROCESS_BYTES * train.devices
    counts = [
        max((entry.peak_reserved_bytes or entry.peak_bytes or 0) + context, entry.device_used_bytes or 0)
        for entry in train.memory
    ]
    shares = [share.peak_bytes for share in train.per_device if share.peak_bytes is not None]
    largest = max(shares) / sum(shares) if len(shares) == train.devices > 1 else 1 / train.devices
    return round(max(counts) * largest)


# --- Runs and arms ---


def runs_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a run: by model, task and suite, then family, method and seed; controls last.

    Columns:
        run_id, sweep, group, model, task, suite, arm, method, family, seed, status, comparison_key, started_at,
        wall_seconds, train_wall_seconds, evaluate_wall_seconds, ..., learning_rate; untrained, control (true or false);
        failure_stage, failure_message, last_known_peak_bytes;
        the fields of `TrainResult` (tokens_per_second; counts as train_examples, train_tokens, ...), trainable_share
        (0..1), cost_usd (train_seconds at hardware.price_usd_per_hour);
        peak_memory_bytes (`peak_memory_bytes`), weights_bytes, gradients_bytes, optimizer_bytes;
        heldout_loss_before, heldout_loss_after, test_loss (nats a token); score (the task's first metric),
        score_<metric>, test_examples, cut_at_limit, generate_tokens_per_second, prompt_tokens_per_answer,
        answer_seconds, regression_mean (of the suite's tasks for which higher is better); the fields of `Environment`;
        train_busy, evaluate_busy, regression_busy, serve_busy (what disturbed the stage).
    """
    records = list(records)
    names = arm_names(records)
    frame = pd.DataFrame([_run_row(record) | {"arm": names[record.run_id]} for record in records])
    if frame.empty:
        return pd.DataFrame(columns=[*_RUN, "sweep", "group", "model", "task", "suite", "status"])
    frame = frame[[*_RUN, *(name for name in frame if name not in _RUN)]]
    numbers = [str(name) for name in frame if frame[name].dropna().map(type).isin((int, float)).all()]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)  # a column of None and numbers is one of numbers
    frame["_order"] = frame["family"].map(_FAMILIES.index)
    order = ["model", "task", "suite", "control", "_order", "method", "arm", "seed"]
    return frame.sort_values(order, ignore_index=True).drop(columns="_order")


def _run_row(record: Record) -> dict[str, Any]:
    names = ("run_id", "sweep", "model", "task", "suite", "method", "seed", "comparison_key", "started_at")
    method = record.config.method
    row = {name: getattr(record, name) for name in names} | {
        "group": " / ".join((record.model, record.task, record.suite)),
        "family": family(record),
        "untrained": method.trains == "nothing",
        "control": method.control,
        "status": str(record.status),
        "wall_seconds": record.wall_seconds,
        **{f"{stage}_wall_seconds": seconds for stage, seconds in record.stage_wall_seconds.items()},
        "learning_rate": method.learning_rate,
    }
    if record.train:
        row |= _train_columns(record.train, record.config.hardware.price_usd_per_hour)
    if result := record.evaluate:
        row["score"] = next(iter(result.scores.values()), None)
        row |= {f"score_{metric}": value for metric, value in result.scores.items()}
        row |= {"test_loss": result.heldout_loss, "test_examples": result.examples, "cut_at_limit": result.cut_at_limit}
        row["generate_tokens_per_second"] = result.generate_tokens_per_second
        row |= _cost_of_an_answer(result, record.data)
    if record.regression:
        values = [task.value for task in record.regression.tasks if task.higher_is_better]
        known = [value for value in values if value is not None]  # a mean without the task that is not finite is none
        row["regression_mean"] = sum(known) / len(values) if values and len(known) == len(values) else None
    if stage := record.train or record.evaluate or record.regression:
        row |= asdict(stage.environment)
    row |= {f"{name}_busy": text for name, text in disturbances(record).items()}
    if failure := record.failure:
        row |= {"failure_stage": failure.stage, "failure_message": failure.message}
        row["last_known_peak_bytes"] = failure.last_known_peak_bytes
    return row


def _cost_of_an_answer(result: EvaluateResult, data: DataSummary | None) -> dict[str, float | None]:
    """As the test split was answered, many prompts at a time: tokens of the prompt, seconds with retrieval."""
    rate, retrieval = result.generate_tokens_per_second, (data.retrieval_seconds if data else None) or 0.0
    seconds = (result.generated_tokens or 0) / rate + retrieval if rate else None
    return {
        "prompt_tokens_per_answer": None if result.prompt_tokens is None else result.prompt_tokens / result.examples,
        "answer_seconds": None if seconds is None else seconds / result.examples,
    }


def _train_columns(train: TrainResult, price_usd_per_hour: float | None) -> dict[str, Any]:
    row = {_TRAIN.get(name, name): value for name, value in vars(train).items() if name not in _NO_COLUMNS}
    row["cost_usd"] = None if price_usd_per_hour is None else train.train_seconds / 3600 * price_usd_per_hour
    row["trainable_share"] = train.parameters_trainable / train.parameters_total
    row["peak_memory_bytes"] = peak_memory_bytes(train)
    row |= asdict(train.breakdown) if train.breakdown else {}
    points = sorted(train.heldout, key=lambda point: point.step)
    if points:
        row["heldout_loss_before"] = points[0].loss if points[0].step == 0 else None
        row["heldout_loss_after"] = points[-1].loss if points[-1].step > 0 else None
    return row


def arms_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in the order of `runs_frame`: the frame that claims, the decision, tables and charts read.

    Columns: group, model, task, suite, arm, method, family, untrained, control; seeds (runs that finished an
    evaluation, one a seed), runs (all that were started), failed (runs whose status is not ok); every
    numeric column of `runs_frame` as its mean over the seeds (of two runs of one seed the later one); train_busy, ...
    (the first clause).
    """
    identity = ["group", "model", "task", "suite", "arm", "method", "family", "untrained", "control"]
    if runs.empty:
        return pd.DataFrame(columns=[*identity, "seeds", "runs", "failed"])
    by = ["group", "arm"]
    latest = runs.sort_values("started_at").drop_duplicates([*by, "seed"], keep="last")
    evaluated = [name for name in ("score", "regression_mean", "test_loss") if name in runs]
    counts = pd.DataFrame({
        "seeds": latest[latest[evaluated].notna().any(axis=1)].groupby(by)["seed"].nunique(),
        "runs": runs.groupby(by)["run_id"].count(),
        "failed": (runs["status"] != "ok").groupby([runs[name] for name in by]).sum(),
    }).fillna(0).astype(int)  # fmt: skip
    numbers = [name for name in runs.select_dtypes("number") if name != "seed"]
    busy = [f"{stage}_busy" for stage in STAGES if f"{stage}_busy" in runs]
    frame = runs.drop_duplicates(by)[identity].set_index(by)
    frame = frame.join(counts).join(latest.groupby(by)[numbers].mean()).join(runs.groupby(by)[busy].first())
    frame = frame.reset_index()
    return frame[[*identity, *(name for name in frame if name not in identity)]]
