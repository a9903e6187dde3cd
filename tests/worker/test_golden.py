"""Loss curves of the tiny model, as they were when this was last looked at.

A failure here after an upgrade of a dependency means that training itself has changed. When the change is understood
and wanted: `pytest tests/worker/test_golden.py --update-golden`, and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_train import configured, trained

FILE = Path(__file__).with_name("golden.json")
STEPS = 12
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}  # relative; processors sum in different orders


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("method", ["full", "full_bf16", "full_adam8bit", "lora", "qlora"])
def test_losses_and_gradient_norms_are_as_they_were(
    smoke, tmp_path: Path, request: pytest.FixtureRequest, method: str, dtype: str
) -> None:
    budget = ("train.batch_size=4", "train.micro_batch=2", "train.epochs=2", f"train.max_steps={STEPS}")
    result, steps = trained(
        configured(smoke, f"method={method}", f"hardware.compute_dtype={dtype}", *budget), tmp_path / "run"
    )
    seen = {
        "loss": [round(s["loss"], 6) for s in steps],
        "gradient_norm": [round(s["gradient_norm"], 6) for s in steps],
        "heldout_loss": [round(p.loss, 6) for p in result.heldout],
        "data_stream_sha256": result.data_stream_sha256,
    }
    if request.config.getoption("--update-golden"):
        _store(f"{method}-{dtype}", seen)
    golden = json.loads(FILE.read_text())[f"{method}-{dtype}"]
    assert seen["data_stream_sha256"] == golden["data_stream_sha256"]
    for name in ("loss", "gradient_norm", "heldout_loss"):
        assert seen[name] == pytest.approx(golden[name], rel=TOLERANCE[dtype]), name


def _store(name: str, seen: dict) -> None:
    curves = json.loads(FILE.read_text()) if FILE.exists() else {}
    curves[name] = seen
    lines = [f"{json.dumps(key)}: {json.dumps(curves[key])}" for key in sorted(curves)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
