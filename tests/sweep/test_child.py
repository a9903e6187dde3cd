"""How a child's end becomes a status: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.mistakes import ConfigurationError
from bench.outcome import Stage, Status
from bench.sweep import child as launch


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Returns a function that runs Python code in the place of the worker."""
    real = subprocess.Popen

    def run(code: str, timeout_seconds: float = 60, stage: Stage = "train") -> launch.Outcome:
        def popen(command, **options):
            assert command[1:3] == ["-m", "bench.worker"]
            return real([sys.executable, "-c", f"folder = {str(tmp_path)!r}\n{code}"], **options)

        monkeypatch.setattr(launch.subprocess, "Popen", popen)
        return launch.run_stage(tmp_path, stage, timeout_seconds)

    return run


def test_a_result_file_and_exit_code_0_are_ok(child) -> None:
    outcome = child("open(folder + '/train.json', 'w').write('{}')")
    assert outcome.status is Status.OK
    assert outcome.failure is None


def test_exit_code_0_without_a_result_is_an_error(child) -> None:
    outcome = child("pass")
    assert outcome.status is Status.ERROR
    assert "no train.json" in outcome.failure.message


def test_a_stale_result_is_not_taken_for_a_new_one(child, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}")
    assert child("raise SystemExit(1)").status is Status.ERROR
    assert not (tmp_path / "train.json").exists()


def test_the_log_and_the_phase_are_kept(child) -> None:
    outcome = child(
        "open(folder + '/progress.json', 'w').write('{\"phase\": \"backward\"}')\n"
        "print('last words', flush=True); raise SystemExit(1)"
    )
    assert outcome.failure.phase == "backward"
    assert "last words" in outcome.failure.log_tail
    assert outcome.failure.exit_code == 1


@pytest.mark.parametrize(("name", "number"), [("SIGKILL", 9), ("SIGSEGV", 11)])
def test_a_signal_is_killed(child, name: str, number: int) -> None:
    outcome = child(f"import os; os.kill(os.getpid(), {number})")
    assert outcome.status is Status.KILLED
    assert name in outcome.failure.message


def test_exit_code_3_is_out_of_memory(child) -> None:
    assert child("raise SystemExit(3)").status is Status.OOM


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", "import os; os.abort()"),
        ("Error out of memory at line 380 in file /src/csrc/ops.cu", "raise SystemExit(1)"),
    ],
    ids=["C++", "bitsandbytes"],
)
def test_compiled_code_that_gives_up_on_memory_is_out_of_memory(child, words: str, end: str) -> None:
    limits = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    assert child(f"{limits}; print({words!r}, flush=True)\n{end}").status is Status.OOM
    assert child(f"{limits}\n{end}").status is not Status.OOM


def test_a_child_that_dies_without_a_word_leaves_the_last_line_of_its_log(child) -> None:
    assert (
        "No space left"
        in child("print('OSError: No space left on device', flush=True); raise SystemExit(1)").failure.message
    )


def test_a_child_that_ignores_the_first_signal_is_killed(child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    started = time.monotonic()
    assert child(code, timeout_seconds=2).status is Status.TIMEOUT
    assert time.monotonic() - started < 10


def test_a_configuration_error_is_raised_with_the_childs_words(child) -> None:
    problem = json.dumps({"problems": ["task.train_file: data.jsonl:3: not JSON"]})
    with pytest.raises(ConfigurationError, match=r"data\.jsonl:3"):
        child(f"open(folder + '/error.json', 'w').write({problem!r}); raise SystemExit(2)", stage="prepare")


def test_a_configuration_error_after_preparing_is_a_failure_of_the_run(child) -> None:
    words = json.dumps({"message": "hardware.device: cuda was asked for, but none is visible"})
    outcome = child(f"open(folder + '/error.json', 'w').write({words!r}); raise SystemExit(2)")
    assert outcome.status is Status.ERROR
    assert "cuda was asked for" in outcome.failure.message


def test_a_timeout_ends_the_child_and_its_children(child, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = child(
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(folder + '/grandchild', 'w').write(str(p.pid)); time.sleep(60)",
        timeout_seconds=2,
    )
    assert outcome.status is Status.TIMEOUT
    assert time.monotonic() - started < 20
    grandchild = int((tmp_path / "grandchild").read_text())
    assert not _runs(grandchild)


def test_ctrl_c_stops_the_child_first(child, tmp_path: Path) -> None:
    interrupt = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        child("import os, time; open(folder + '/pid', 'w').write(str(os.getpid())); time.sleep(60)")
    assert not _runs(int((tmp_path / "pid").read_text()))


def test_the_parent_sleeps_while_it_waits(child) -> None:
    before = time.thread_time()
    child("import time; time.sleep(3); open(folder + '/train.json', 'w').write('{}')")
    assert time.thread_time() - before < 0.15  # 5% of a core, on a busy machine; 0.3% measured


def _runs(pid: int) -> bool:
    """Whether a process is alive; a zombie that nobody has reaped is not."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True
