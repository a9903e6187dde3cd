"""Model and data into the cache and checked, without the device of the run: on a login node, or for another machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.config import ConfigurationError
from bench.identity import data_folder
from bench.record import DataSummary
from bench.worker import checks, models, prepare
from bench.worker.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    """Fetch or build what the run needs of the world; returns a summary of the data.

    Raises:
        ConfigurationError: wrong names, columns, lengths, suite tasks, or too little disk.
    """
    return {"data": asdict(fetched(context)[2])}


def fetched(context: Context) -> tuple[str, Any, DataSummary]:
    """(what `from_pretrained` takes, the tokenizer, a summary of the data)."""
    config = context.config
    context.progress.phase("check")
    problems = checks.before_download(config)
    if problems:
        raise ConfigurationError(problems)
    context.progress.phase("model")
    source = models.fetch(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    context.progress.phase("data")
    return source, tokenizer, prepare.prepare(config, tokenizer, data_folder(config))
