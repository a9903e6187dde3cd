"""What every stage is given, and what several of them do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.identity import artifact_folder, write_atomic
from bench.worker import device, methods, models
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.load import Load, open_load
from bench.worker.instruments.memory import Memory, open_memory
from bench.worker.loss import SupervisedHead
from bench.worker.progress import Progress
from bench.worker.team import ALONE, Team


@dataclass
class Context:
    """What every stage is given."""

    folder: Path
    config: RunConfig
    progress: Progress
    team: Team = ALONE
    clock: Clock = field(default_factory=Clock)
    load: Load = field(default_factory=Load)

    def measure_on(self, resolved: device.Device) -> Memory:
        """Point the instruments at the device, before anything is loaded on it."""
        self.clock.synchronize = resolved.synchronize
        self.load = open_load(resolved.type, self.team.family)
        memory = open_memory(resolved.type)
        self.progress.peak_bytes = memory.peak_so_far_bytes
        return memory

    @property
    def cache(self) -> Path:
        return Path(self.config.paths.cache)

    @property
    def tables(self) -> Path:
        """Whose folder `datasets` holds the tables that the `datasets` library makes."""
        return Path(self.config.paths.bundle or self.config.paths.cache)

    @property
    def weights(self) -> Path:
        return artifact_folder(self.config)


def load_trainable(context: Context, resolved: device.Device, memory: Memory) -> tuple[Any, SupervisedHead, Any]:
    """(trainable model, its output head, tokenizer) on the device."""
    config = context.config
    context.progress.phase("load")
    memory.enter("load")
    with context.clock.span("load"):
        source = models.locate(config.model, context.cache)
        tokenizer = models.load_tokenizer(config.model, source)
        where, how = context.team.device(resolved.type), {"attn_implementation": resolved.attention}
        with context.team.first_alone():
            base = methods.load_to_train(config, source, where, resolved.compute_dtype, **how)
        model = methods.make_trainable(base, config.method, config.seed)
        methods.start_adapter(model, config, source)
        methods.leave_bf16_grid(model, config, resolved.compute_dtype)
        head = SupervisedHead(model)
    if resolved.compiled == "regional":
        from bench.worker.compiling import compile_layers  # seconds to import

        compile_layers(model)
    else:
        methods.add_adapters_in_fp32(model, config.method)
    return model, head, tokenizer


def load_tuned(context: Context) -> tuple[Any, Any, device.Device, Memory]:
    """(model, tokenizer, device, memory instrument): the run's result, ready for evaluation."""
    config = context.config
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    context.progress.phase("load")
    memory.enter("load")
    with context.clock.span("load"):
        source = models.locate(config.model, context.cache)
        tokenizer = models.load_tokenizer(config.model, source)
        # Left-padded generation and shared prefixes need masks, which flash attention does not take.
        resolved = replace(resolved, attention="eager" if config.hardware.attention == "eager" else "sdpa")
        model = methods.load_trained(
            config,
            source,
            context.weights,
            resolved.type,
            resolved.compute_dtype,
            attn_implementation=resolved.attention,
        )
    context.load.start()  # other load counts from here: evaluation, not loading
    return model, tokenizer, resolved, memory


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write gzipped JSON lines, whole or not at all; without a time stamp: equal content gives equal files."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, gzip.compress(lines.encode(), mtime=0))
