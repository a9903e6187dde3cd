"""`python -m bench.worker.together COUNT RUN_DIR STAGE`: one stage by several processes, as torchrun does.

torch's own launcher starts them, one a device, at a free port, and ends all when one fails; but it exits with 1
whatever happened. This exits as the process that failed first did, with its code or by its signal, so that the parent
tells out of memory, killed and error apart just as it does for a process alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bench.config import EXIT_ERROR, EXIT_OK


def main(count: int, folder: Path, stage: str) -> int:
    """Run the stage. Returns the exit code; a negative one is minus a signal's number."""
    with suppress(AttributeError, OSError):
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)
    options = ["--standalone", f"--nproc-per-node={count}", "--module", "bench.worker", str(folder), stage]
    try:
        run.run(run.parse_args(options))
        return EXIT_OK
    except ChildFailedError as error:
        return first_cause([failure.exitcode for failure in error.failures.values()], folder)
    except SignalException as error:
        return -int(error.sigval)


def first_cause(codes: Sequence[int], folder: Path) -> int:
    """The exit code that tells what went wrong, of those of all processes that failed.

    What a process said in `error.json` comes first, unless it only says that it lost another: then that one died by a
    signal. Losing another may also end a process by a signal of its own (gloo aborts), so SIGKILL, which comes from
    outside, goes before others; SIGTERM is what the launcher ends the rest with.
    """
    said: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        said = json.loads((folder / "error.json").read_text())
    if said and not said.get("lost_peer"):
        return int(said["exit_code"])
    signals = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    if signals:
        return -signal.SIGKILL if -signal.SIGKILL in signals else signals[0]
    return int(said["exit_code"]) if said else max(codes, default=EXIT_ERROR)


def _exit(code: int) -> None:
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    _exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
