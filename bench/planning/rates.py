"""A run's learning rate from a file of `make tune`, when it asks for one with `rates=FILE`.

Nothing is guessed: a run whose method, model, task or budget was not tuned is a mistake, told before anything runs.

    >>> with_tuned_rate(config).learning_rate_source
    'tuned: results/tune/default/rates.yaml sha256 1f2e3d4c5b6a'
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError
from bench.spec.identity import tuning_key
from bench.spec.tuning import Rates

RATES_FILE = "rates.yaml"  # in results/tune/<name>/, and copied into the sweeps that used it
_DIGEST_SHOWN = 12


def read_rates(path: Path) -> Rates:
    """The content of a rates file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one; the message names the first mistake.
    """
    try:
        return TypeAdapter(Rates).validate_python(yaml.safe_load(path.read_bytes()))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None


def with_tuned_rate(config: RunConfig) -> RunConfig:
    """The run with the rate that its file holds for it; unchanged when it names no file or trains nothing.

    Raises:
        ConfigurationError: no such file, not a rates file, or no rate in it for this run.
    """
    if config.rates is None or config.method.trains == "nothing":
        return config
    path = Path(config.rates)
    try:
        tunings = read_rates(path).tunings
    except FileNotFoundError:
        raise ConfigurationError([f"rates: {path}: no such file; `make tune` writes one"]) from None
    except (ValueError, OSError) as error:
        raise ConfigurationError([f"rates: {path}: not readable ({error}); write it again with `make tune`"]) from None
    tuning = next((t for t in tunings if t.key == tuning_key(config)), None)
    what = f"{config.method.name} on {config.model.name}, {config.task.name}"
    if tuning is None:
        held = ", ".join(dict.fromkeys(f"{t.method} on {t.model}, {t.task}" for t in tunings)) or "nothing"
        raise ConfigurationError(
            [
                f"rates: {path} has no rate for {what} with these settings and this budget; it holds {held}. "
                "Tune with the same overrides (make tune ARGS=...), or leave `rates` out"
            ]
        )
    if tuning.learning_rate is None:
        raise ConfigurationError(
            [f"rates: {path}: the search for {what} found no rate with a finite loss; set method.learning_rate"]
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGEST_SHOWN]
    return replace(
        config,
        method=replace(config.method, learning_rate=tuning.learning_rate),
        learning_rate_source=f"tuned: {path} sha256 {digest}",
    )
