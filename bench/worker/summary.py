"""From what was observed of training to the fields of its `TrainResult`.

>>> speed(config, resolved, observer, flops.linear_costs(model), peak)["train_tokens_per_second"]
482.1
"""

from __future__ import annotations

from typing import Any

from bench.config import RunConfig
from bench.worker import methods
from bench.worker.device import Device
from bench.worker.instruments import flops
from bench.worker.instruments.clock import step_times
from bench.worker.observer import Observer


def consumed(observer: Observer) -> dict[str, Any]:
    """What was trained on, of the whole run."""
    return {
        "data_stream_sha256": observer.tokens.hexdigest(),
        "steps": len(observer.steps),
        "examples": observer.counts.examples,
        "tokens": observer.counts.tokens,
        "supervised_tokens": observer.counts.supervised_tokens,
        "positions": observer.counts.positions,
        "train_seconds": observer.steps[-1].elapsed_seconds,
    }


def speed(
    config: RunConfig,
    resolved: Device,
    observer: Observer,
    costs: flops.LinearCosts,
    peak_flops_per_second: float,
) -> dict[str, Any]:
    """Speeds over the timed steps of this process; None when every step was warm-up."""
    timed = [s.seconds for s in observer.own_steps if s.timed]
    counts = observer.timed_counts
    needed = flops.needed_flops(
        costs,
        tokens=counts.tokens,
        supervised_tokens=counts.supervised_tokens,
        attended_pairs=counts.attended_pairs,
    )
    times = step_times(
        [s.seconds for s in observer.own_steps], config.train.untimed_steps, compiled=resolved.compiled == "regional"
    )

    def per_second(count: int) -> float | None:
        return count / sum(timed) if timed else None

    return {
        "timed_steps": len(timed),
        "train_tokens_per_second": per_second(counts.tokens),
        "supervised_tokens_per_second": per_second(counts.supervised_tokens),
        "positions_per_second": per_second(counts.positions),
        "step_seconds_median": times.median,
        "step_seconds_p90": times.p90,
        "step_seconds_p99": times.p99,
        "compile_seconds": times.compile,
        "needed_flops_per_second": per_second(needed),
        "matmul_peak_flops_per_second": peak_flops_per_second,
        "mfu": needed / sum(timed) / peak_flops_per_second if timed else None,
    }


def parameters(config: RunConfig, model: Any) -> dict[str, Any]:
    """How many there are, and how they are kept."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "parameters_total": methods.parameters_total(model),
        "parameters_trainable": sum(p.numel() for p in trainable),
        "parameters_quantized": methods.parameters_quantized(model),
        "trainable_dtype": str(trainable[0].dtype).removeprefix("torch."),
        "checkpoint_dtype": methods.checkpoint_dtype(model, config.method),
    }
