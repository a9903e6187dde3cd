"""The training stage of several plans, one after the other, in processes that torch's launcher started together.

Starting processes takes longer than training the tiny model in them, so that tests start them once.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/worker/train_together.py PLAN_FOLDER...
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from accelerate.state import AcceleratorState

from bench.config import RunConfig
from bench.record import from_json, to_json
from bench.worker import train
from bench.worker.main import Context, Progress
from bench.worker.multi import Team


def main(folders: list[Path]) -> None:
    team = Team.of_this_process()
    for folder in folders:
        config = from_json(RunConfig, (folder / "plan.json").read_bytes())
        try:
            result = train.run(Context(folder, config, Progress(folder, "train", silent=not team.is_first), team))
            if team.is_first:
                (folder / "train.json").write_text(to_json(result))
        except Exception:  # equal in all processes, or the others wait forever: the test's time limit ends them
            (folder / f"error.{team.rank}.txt").write_text(traceback.format_exc())
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # accelerate leaves it set
    team.leave()


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
