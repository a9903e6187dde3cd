"""The files of chosen learning rates: written by a search, kept beside the runs that used them."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import TypeAdapter

from bench.planning.rates import RATES_FILE, read_rates
from bench.running.store import claim
from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError
from bench.spec.layout import sweep_folder, write_atomic
from bench.spec.tuning import Rates, Tuning

_HEAD = "# Learning rates chosen on the validation split by `python -m bench.tune`; used with rates=THIS FILE.\n"


def keep_tuning(path: Path, tuning: Tuning) -> None:
    """Add a finished search to a rates file, in place of an earlier one for the same runs.

    Raises:
        ValueError: the file is there and is not a rates file.
    """
    with claim(path.parent):
        others = [t for t in read_rates(path).tunings if t.key != tuning.key] if path.exists() else []
        content = TypeAdapter(Rates).dump_python(Rates([*others, tuning]), mode="json")
        write_atomic(path, _HEAD + yaml.safe_dump(content, sort_keys=False, width=120))


def keep_rates(config: RunConfig) -> None:
    """Copy the rates file that a run names into its sweep's folder, where the report looks for it.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    if config.rates is None:
        return
    kept = sweep_folder(config) / RATES_FILE
    try:
        if kept.resolve() != Path(config.rates).resolve():
            write_atomic(kept, Path(config.rates).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError([f"rates: {config.rates} cannot be copied to {kept}: {error}"]) from None
