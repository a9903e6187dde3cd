"""Which run can be exported: finished, trained, its weights whole, and in the form that is asked for.

>>> exportable(Path("results/default/lora-..."), form="merged").weights
PosixPath('artifacts/lora-.../forms/merged')
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.running import store
from bench.spec.config import RunConfig, from_mapping
from bench.spec.failure import ConfigurationError, Status
from bench.spec.layout import artifact_folder
from bench.spec.record import Record, from_json


@dataclass(frozen=True)
class Exportable:
    """A run that can be exported."""

    folder: Path
    record: Record
    config: RunConfig
    weights: Path
    form: str | None = None  # of serving; None: as it was trained

    @property
    def name(self) -> str:
        """Of the folder that it is exported to."""
        return self.record.run_id + (f"-{self.form}" if self.form else "")


def exportable(run: Path, form: str | None = None) -> Exportable:
    """The run of a folder `results/<sweep>/<run_id>`, as it was trained or in a form that serving built.

    Raises:
        ConfigurationError: it is no finished run, trained nothing, its weights are gone, or it was not served so.
    """
    record = store.read_record(run)
    if record is None:
        raise ConfigurationError([f"{run}: no finished run in it (no record.json); give results/<sweep>/<run_id>"])
    if record.status is not Status.OK or record.evaluate is None or record.data is None:
        raise ConfigurationError([f"{run}: it ended {record.status}, or was not evaluated; run it to its end first"])
    if record.train is None:
        raise ConfigurationError([f"{run}: {record.method} trains nothing, so there is nothing to export"])
    try:
        config = from_json(RunConfig, (run / "plan.json").read_bytes())  # with the paths as they were
    except (OSError, ValueError):
        config = from_mapping(record.config)
    weights = artifact_folder(config)
    if not store.weights_are_whole(weights, record.train.checkpoint_bytes):
        raise ConfigurationError(
            [f"{run}: its weights are no longer whole in {weights}; put them there, or delete {run} and run it again"]
        )
    if form is None:
        return Exportable(run, record, config, weights)
    return _in_form(Exportable(run, record, config, weights / "forms" / form, form))


def _in_form(run: Exportable) -> Exportable:
    """The same, when the form is there and was scored on the whole test split."""
    assert run.record.evaluate is not None
    fidelity = run.record.serve.fidelity if run.record.serve else []
    scored = {entry.form: entry.examples for entry in fidelity}
    built = [form for form in scored if (run.weights.parent / form / "config.json").is_file()]
    if run.form not in built:
        there = f"it has {', '.join(built)}" if built else "it has none; serve it: the sweep's command with serve=full"
        raise ConfigurationError([f"--form={run.form}: {run.folder} was not served in it; {there}"])
    if scored[run.form] < run.record.evaluate.examples:
        count = f"{scored[run.form]} of {run.record.evaluate.examples}"
        raise ConfigurationError(
            [f"--form={run.form}: scored on {count} test examples; set serve.fidelity_examples=null"]
        )
    return run
