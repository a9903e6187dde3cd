"""One run in a process of its own: `python -m benchmarks.peers.child REQUEST.json RESULT.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.identity import artifact_folder
from benchmarks.peers.material import configured, gather
from benchmarks.peers.meter import Meter
from benchmarks.peers.run import Run


def main(request_file: Path, result_file: Path) -> None:
    """Train, and write what was measured."""
    request = json.loads(request_file.read_text())
    run, folder, cache = Run(**request["run"]), Path(request["folder"]), Path(request["cache"])
    config = configured(run, folder / "ours", cache)
    material = gather(config)
    if request["prepare_only"]:
        return
    weights = folder / "weights" / run.name
    extra: dict[str, Any]
    if run.trainer == "litgpt":
        from benchmarks.peers.litgpt_parent import train_litgpt

        measured = train_litgpt(material, request["litgpt_python"], weights)
    elif run.trainer == "ours":
        from benchmarks.peers.ours import train_ours

        meter = Meter()
        extra = train_ours(config, meter)
        measured, weights = meter.result(material.batch_size) | extra, artifact_folder(config)
    else:
        from benchmarks.peers.hugging_face import Watch, train_plain, train_trl

        meter = Meter()
        watch = Watch(meter)
        (train_trl if run.trainer == "trl" else train_plain)(material, meter, watch, weights)
        extra = {"losses": watch.losses, "gradient_norms": watch.gradient_norms}
        measured = meter.result(material.batch_size) | extra
    about = {"run": run.to_json(), "weights": str(weights), "cache": str(cache)}
    result_file.write_text(json.dumps(about | measured, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
