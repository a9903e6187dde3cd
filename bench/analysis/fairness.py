"""May two runs be compared? Every reason against it, with the name under which it can be allowed.

Runs of different budgets, data, machines or software are never compared silently: the reason is returned and shown,
and `--allow-different=NAME` is needed to compare them nonetheless.

    >>> [str(reason) for reason in reasons_against(lora_seed_0, full_seed_0)]
    ['they consumed different data (data_stream_sha256 1f2e3d4c and 99aa88bb)']
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.analysis.order import is_base
from bench.fairness import Reason, differing_settings
from bench.record import Environment, Record, TrainResult

COMPUTING_PACKAGES = ("transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "lm-eval")
DIGEST_SHOWN = 8  # characters
_MEASURED = {  # what each requirement reads of a stage's environment, with what it is called
    "device": {"device": "device", "device_count": "number of devices"},
    "threads": {"threads": "threads", "cpus": "number of usable processors"},
    "software": {"torch": "torch"},
    "numerics": {"compute_dtype": "compute_dtype", "attention": "attention"},
}


def reasons_against(left: Record, right: Record) -> list[Reason]:
    """Why the results of two runs may not be compared; empty when they may.

    Trained runs must agree in all settings but the method's, in the consumed data, and in the environment of training
    and evaluation. A base model consumed no data and has no budget: it must agree in what concerns evaluation. What
    either run does not know (an older record) is no reason.
    """
    trained = not (is_base(left) or is_base(right))
    reasons = differing_settings(left.config, right.config, trained=trained)
    if trained:
        if left.comparison_key != right.comparison_key and not reasons:
            reasons.append(Reason("settings", f"their keys differ ({left.comparison_key} and {right.comparison_key})"))
        if left.train is None or right.train is None:
            return [*reasons, Reason("training", "one of them has no training result")]
        reasons += [*_consumed(left.train, right.train), *_prepared(left, right)]
    return [*reasons, *_environments(left, right, trained), *_packages(left, right)]


def _consumed(left: TrainResult, right: TrainResult) -> Iterator[Reason]:
    streams = left.data_stream_sha256, right.data_stream_sha256
    if streams[0] != streams[1]:
        digests = " and ".join(stream[:DIGEST_SHOWN] for stream in streams)
        yield Reason("stream", f"they consumed different data (data_stream_sha256 {digests})")
    if left.steps != right.steps:
        yield Reason("budget", f"they took different numbers of steps ({left.steps} and {right.steps})")
    if left.model_revision != right.model_revision and left.model_revision and right.model_revision:
        yield Reason("model", f"they loaded different revisions ({left.model_revision} and {right.model_revision})")


def _prepared(left: Record, right: Record) -> Iterator[Reason]:
    """Of trained runs only: an untrained one may come with another training split, or with solved examples."""
    if left.data and right.data and left.data.fingerprint != right.data.fingerprint:
        prints = " and ".join(data.fingerprint[:DIGEST_SHOWN] for data in (left.data, right.data))
        yield Reason("stream", f"their prepared data differ (fingerprint {prints})")


def _environments(left: Record, right: Record, trained: bool) -> list[Reason]:
    """What differs in both stages is said once."""
    verbs: dict[Reason, list[str]] = {}
    if trained and left.train and right.train:
        for reason in [*_measured(left.train.environment, right.train.environment), *_rounding(left, right)]:
            verbs.setdefault(reason, []).append("trained")
    stages = [record.evaluate or record.regression for record in (left, right)]
    if stages[0] and stages[1]:
        for reason in _measured(stages[0].environment, stages[1].environment):
            verbs.setdefault(reason, []).append("evaluated")
    return [Reason(r.name, f"they were {' and '.join(words)} with different {r.text}") for r, words in verbs.items()]


def _measured(left: Environment, right: Environment) -> Iterator[Reason]:
    for name, facts in _MEASURED.items():
        for fact, text in facts.items():
            values = getattr(left, fact), getattr(right, fact)
            if values[0] != values[1] and None not in values:
                yield Reason(name, f"{text} ({values[0]} and {values[1]})")


def _rounding(left: Record, right: Record) -> Iterator[Reason]:
    """What decides where training rounds to bf16; see docs/numerics.md."""
    assert left.train
    assert right.train
    compiled = left.train.environment.compiled, right.train.environment.compiled
    if compilation(left.train.environment) != compilation(right.train.environment):
        yield Reason("numerics", f"numerics (compiled: {compiled[0]} and {compiled[1]})")
    added = adds_in_fp32(left), adds_in_fp32(right)
    if added[0] != added[1] and None not in added:
        yield Reason("numerics", f"numerics (method.adapter.add_in_fp32: {added[0]} and {added[1]})")


def adds_in_fp32(record: Record) -> bool | None:
    """Whether the adapter's branch was added before rounding to bf16; None where there is nothing to choose."""
    adapter = record.config.method.adapter
    environment = record.train.environment if record.train else None
    if not adapter or environment is None or environment.compute_dtype == "float32":
        return None
    # Compiled layers round once, after the addition, whatever the setting.
    return adapter.add_in_fp32 if compilation(environment) == "off" else None


def compilation(environment: Environment) -> str:
    """`regional`, `off`, ...: without the reason, which changes no number."""
    return environment.compiled.partition(":")[0].strip()


def _packages(left: Record, right: Record) -> Iterator[Reason]:
    sides = [record.provenance.get("packages", {}) for record in (left, right)]
    known = [name for name in COMPUTING_PACKAGES if name in sides[0] and name in sides[1]]
    told = [f"{n} {sides[0][n]} and {sides[1][n]}" for n in known if sides[0][n] != sides[1][n]]
    if told:
        yield Reason("software", f"they ran with different packages ({', '.join(told)})")
