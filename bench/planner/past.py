"""The parts of a run's time: what it works through, how fast a probe found the device, and what a run took.

A run's time has seven parts (`PARTS`); docs/numbers.md defines them.

>>> measured_seconds(record)
{'load': 24.1, 'train': 127.2, 'heldout': 43.3, 'generation': 35.2, 'suite': 52.6, 'frontier': 0.0, 'weights': 0.0}
>>> probed_seconds(config, counts, speed)["generation"]
35.0
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.config import RunConfig
from bench.identity import data_folder, data_key, digest
from bench.outcome import Status
from bench.record import DataSummary, Record, Speed, from_json

PARTS = {  # of a run's time -> its name for a person
    "load": "load", "train": "train", "heldout": "held-out", "generation": "generation", "suite": "suite",
    "frontier": "frontier", "weights": "weights",
}  # fmt: skip
WHEN_ASKED = ("frontier", "weights")  # parts that few runs have: stages, from the start to the end of their process
_SPANS = {
    "train_steps": "train", "heldout": "heldout", "generate": "generation", "score": "generation",
    "regression": "suite", "divergence": "suite",
}  # fmt: skip


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


def prepared(config: RunConfig) -> DataSummary | None:
    """What the prepared data hold; None: not known yet."""
    with suppress(OSError, ValueError):
        return from_json(DataSummary, (data_folder(config) / "summary.json").read_bytes())
    return None


def not_asked(config: RunConfig, counts: Counts) -> dict[str, float]:
    """Parts that the run does not have: they take no time."""
    tuned = not config.untrained and not config.trial
    asked = {
        "train": not config.untrained, "heldout": counts.heldout != 0, "generation": counts.test != 0,
        "suite": config.suite.source != "none" and not config.trial,
        "frontier": tuned and config.evaluation.points, "weights": tuned and config.evaluation.weights,
    }  # fmt: skip
    return {part: 0.0 for part, wanted in asked.items() if not wanted}


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
