"""Model and data into the cache; every mistake in either is found here, before any training."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

import torch

from bench.config import CUTS_WEIGHTS
from bench.worker import device, methods
from bench.worker.divergence import reference_of
from bench.worker.stages.context import Context
from bench.worker.stages.fetch import fetched


def run(context: Context) -> dict[str, Any]:
    """`fetch`, and what the runs share on their device; returns a summary of the data.

    Raises:
        ConfigurationError: wrong names, columns, lengths, suite tasks, or too little disk.
    """
    config = context.config
    source, tokenizer, summary = fetched(context)
    if config.method.quantization is not None:
        context.progress.phase("quantize")
        resolved = device.resolve(config)
        methods.load_base(config, source, resolved.type, resolved.compute_dtype)  # stored for the runs to come
        if config.hardware.strategy in CUTS_WEIGHTS:
            methods.load_to_train(config, source, resolved.type, resolved.compute_dtype)  # likewise
    if config.suite.source != "none" and config.trial is None:
        context.progress.phase("reference")
        with contextlib.suppress(torch.OutOfMemoryError):  # then the regression stage says so
            reference_of(config, source, tokenizer, device.resolve(config))
    return {"data": asdict(summary)}
