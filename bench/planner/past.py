"""How long the parts of earlier runs on this device took, and what a new run of the same kind is expected to take.

A run's time has seven parts (`PARTS`); docs/numbers.md defines them. What no earlier run tells is None.

>>> measured_seconds(record)
{'load': 24.1, 'train': 127.2, 'heldout': 43.3, 'generation': 35.2, 'suite': 52.6, 'frontier': 0.0, 'weights': 0.0}
>>> expected_seconds(config, counts, earlier_runs(config, "cpu: AMD EPYC", 2))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from glob import escape
from pathlib import Path
from statistics import fmean

from bench.config import RunConfig
from bench.identity import data_folder, data_key, digest
from bench.outcome import Status
from bench.record import DataSummary, Record, Speed, TrainResult, from_json

PARTS = {  # of a run's time -> its name for a person
    "load": "load", "train": "train", "heldout": "held-out", "generation": "generation", "suite": "suite",
    "frontier": "frontier", "weights": "weights",
}  # fmt: skip
WHEN_ASKED = ("frontier", "weights")  # parts that few runs have: stages, from the start to the end of their process
_SPANS = {
    "train_steps": "train", "heldout": "heldout", "generate": "generation", "score": "generation",
    "regression": "suite", "divergence": "suite",
}  # fmt: skip
_KEPT = 3  # earlier runs that are averaged, the newest


@dataclass(frozen=True)
class Counts:
    """What a run works through; None: not known before the data are there."""

    train: int | None  # examples, all epochs
    heldout: int | None  # examples whose loss is computed: validation at every point, and the test split
    test: int | None  # answers
    tokens_per_example: float
    exact: bool  # from the prepared data; else from the settings, with the longest examples allowed
    supervised_share: float = 1.0  # of the tokens

    @property
    def tokens(self) -> float | None:
        """That are trained on."""
        return None if self.train is None else self.train * self.tokens_per_example


def prepared(config: RunConfig, earlier: Sequence[Record] = ()) -> DataSummary | None:
    """What the prepared data hold, else those that an earlier run prepared alike; None: not known yet."""
    with suppress(OSError, ValueError):
        return from_json(DataSummary, (data_folder(config) / "summary.json").read_bytes())
    return next((record.data for record in earlier if data_key(record.config) == data_key(config)), None)


def counts_of(config: RunConfig, data: DataSummary | None) -> Counts:
    """Of a run on these data; without them as its settings have it."""
    train, task, length = config.train, config.task, float(config.train.max_length)
    trained, validation, test = task.train_examples, task.validation_examples, task.test_examples
    if data is not None:
        trained, validation, test = data.train_examples, data.validation_examples, data.test_examples
        length = data.tokens_per_example_mean
    if train.max_steps is not None:
        trained = train.max_steps * train.batch_size
    elif trained is not None:
        trained *= train.epochs
    points = 0 if config.untrained else train.heldout_points + 1  # and once before the first step
    known = [n for n in (validation, train.heldout_examples) if n is not None]
    heldout = None if test is None or (points and not known) else points * min(known, default=0) + test
    if config.trial:
        heldout, test = (points * min(known) if known else None), 0
    share = data.check.supervised_share if data is not None and data.check else 1.0
    return Counts(0 if config.untrained else trained, heldout, test, length, data is not None, share)


def measured_seconds(record: Record) -> dict[str, float]:
    """Seconds of a finished run by part; `load` is what is left of its stages: starting, loading, saving."""
    if record.status is not Status.OK:
        return {}
    found = dict.fromkeys(PARTS, 0.0) | {part: record.stage_wall_seconds.get(part, 0.0) for part in WHEN_ASKED}
    for stage in ("train", "evaluate", "regression"):
        if (result := getattr(record, stage)) is None:
            continue
        named = {span: seconds for span, seconds in result.spans_seconds.items() if span in _SPANS}
        for span, seconds in named.items():
            found[_SPANS[span]] += seconds
        found["load"] += max(0.0, record.stage_wall_seconds.get(stage, 0.0) - sum(named.values()))
    return found


def earlier_runs(config: RunConfig, device: str | None, cores: int) -> list[Record]:
    """The newest finished runs of the same model and method on this device; none where the device is unknown.

    Args:
        device: as `Environment.device`.
        cores: that this process may use; they count for a CPU alone.
    """
    if device is None:
        return []
    found = _finished(config.paths.results, config.method.name, config.model.name)
    same = [r for r in found if (e := r.evaluate or r.train) and e.environment.device == device]
    same = [r for r in same if not device.startswith("cpu") or r.provenance.get("cores") == cores]
    return same[:_KEPT]


@cache
def _finished(results: str, method: str, model: str) -> list[Record]:
    """Records of finished runs, the newest first, each read once."""
    records = []
    for path in Path(results).glob(f"*/{escape(method)}-{escape(model)}-*/record.json"):
        with suppress(OSError, ValueError):
            record = from_json(Record, path.read_bytes())
            if record.status is Status.OK:
                records.append(record)
    return sorted(records, key=lambda record: record.started_at, reverse=True)


def speed_path(config: RunConfig, device: str) -> Path:
    """Where a probe keeps a model's speed at a task and a suite, on a device named as `Environment.device` has it."""
    suite = None if config.trial else [asdict(config.suite), config.content.suite]
    name = digest([data_key(config), device, config.hardware.generate_batch, config.hardware.compute_dtype, suite])[:12]
    return Path(config.paths.cache) / "speed" / f"{config.model.name}-{name}.json"


def probed(config: RunConfig, device: str | None) -> Speed | None:
    """What a probe measured; None: there was none, or the device is not known."""
    with suppress(OSError, ValueError):
        return None if device is None else from_json(Speed, speed_path(config, device).read_bytes())
    return None


def probed_seconds(config: RunConfig, counts: Counts, speed: Speed) -> dict[str, float | None]:
    """By part, as far as a probe tells; a part of a batch of answers takes its part of the time."""
    losses = None if counts.heldout is None else counts.heldout * counts.tokens_per_example
    stages = 2 - config.untrained + (config.suite.source != "none")
    return {
        "load": stages * speed.load_seconds,
        "heldout": None if losses is None else losses * speed.forward_seconds_per_token,
        "generation": None if counts.test is None else counts.test / speed.answers * speed.answers_seconds,
        "suite": speed.suite_seconds,
    }


def expected_seconds(config: RunConfig, counts: Counts, earlier: Sequence[Record]) -> dict[str, float | None]:
    """By part, at the speed of the earlier runs: training by tokens, the rest by examples of the same task."""

    def scaled(part: str, amount: float | None, of: Callable[[Record], float | None]) -> float | None:
        """The mean seconds a unit of the earlier runs that have any, times the run's own units."""
        rates = [measured_seconds(r)[part] / units for r in earlier if (units := of(r))]
        return 0.0 if amount == 0 else fmean(rates) * amount if rates and amount is not None else None

    def whole(part: str, asked: object, alike: Callable[[Record], object]) -> float | None:
        """As long as in the earlier runs in which that part was the same; 0: it is not asked for."""
        took = [measured_seconds(r)[part] for r in earlier if alike(r)]
        return (fmean(took) if took else None) if asked and not config.trial else 0.0

    def training(seconds_of: Callable[[TrainResult], float | None]) -> list[float]:
        return [seconds for r in earlier if r.train and (seconds := seconds_of(r.train)) is not None]

    speeds, compiling = training(lambda t: t.train_tokens_per_second), training(lambda t: t.compile_seconds)
    train: float | None = 0.0 if config.untrained else None
    if speeds and counts.tokens is not None:
        train = counts.tokens / fmean(speeds) + (fmean(compiling) if compiling else 0.0)
    own = (config.suite, config.evaluation)
    points, matrices = (not config.untrained and x for x in (config.evaluation.points, config.evaluation.weights))
    return {
        "load": fmean(measured_seconds(r)["load"] for r in earlier) if earlier else None,
        "train": train,
        "heldout": scaled("heldout", counts.heldout, lambda r: counts_of(r.config, r.data).heldout),
        "generation": scaled("generation", counts.test, lambda r: _answers_alike(r, config)),
        "suite": whole("suite", config.suite.source != "none", lambda r: r.config.suite == config.suite),
        "frontier": whole("frontier", points, lambda r: r.frontier and (r.config.suite, r.config.evaluation) == own),
        "weights": whole("weights", matrices, lambda r: r.weights and r.config.evaluation == config.evaluation),
    }


def largest_task(config: RunConfig, earlier: Sequence[Record], speed: Speed | None = None) -> int | None:
    """Items of the suite's largest task, as an earlier run or a probe counted them; None: there was none."""
    same = [r.regression.tasks for r in earlier if r.regression and r.config.suite == config.suite]
    counts = [task.items for tasks in same for task in tasks if task.items_available]
    return max(counts, default=speed.suite_items if speed else None)


def _answers_alike(record: Record, config: RunConfig) -> int | None:
    """Answers of an earlier run, if they were of the same task and written as many at a time."""
    theirs, ours = record.config, config
    same = [(c.task.name, c.task.max_new_tokens, c.hardware.generate_batch) for c in (theirs, ours)]
    return record.evaluate.examples if record.evaluate and same[0] == same[1] else None
