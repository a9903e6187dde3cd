"""`fetch` into a folder that goes to a machine without a network: the suite's data too, which a run loads late."""

from __future__ import annotations

from typing import Any

from bench.worker.stages import fetch
from bench.worker.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    """Fetch what the run needs; returns a summary of the data.

    Raises:
        ConfigurationError: wrong names, columns, lengths, suite tasks, or too little disk.
    """
    result = fetch.run(context)
    if context.config.suite.source in ("lm_eval", "local"):
        from bench.worker.suites.lm_eval_tasks import (
            load_tasks,
        )  # seconds to import; the other suites bring their items

        context.progress.phase("suite")
        load_tasks(context.config.suite, context.tables)
    return result
