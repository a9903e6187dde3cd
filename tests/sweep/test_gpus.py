"""Who holds which GPU: locks on files, of processes that may be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.sweep import launchers as gpus
from bench.sweep.launchers import VISIBLE, own_gpus, visible_gpus


def test_each_gets_a_gpu_of_its_own_and_the_next_waits(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(gpus, "GPU_POLL_SECONDS", 0.01)
    monkeypatch.setenv(VISIBLE, "4,7")
    third: list[str] = []

    def wait_for_one() -> None:
        with own_gpus(locks=tmp_path):
            third.append(os.environ[VISIBLE])

    with own_gpus(locks=tmp_path):
        assert os.environ[VISIBLE] == "4"
        monkeypatch.setenv(VISIBLE, "4,7")  # the environment of another job
        with own_gpus(locks=tmp_path):
            assert os.environ[VISIBLE] == "7"
            os.environ[VISIBLE] = "4,7"
            waiting = threading.Thread(target=wait_for_one)
            waiting.start()
            time.sleep(0.1)
            assert third == []
        waiting.join(10)
        assert third == ["7"]
    assert capfd.readouterr().err == "Waiting: fewer than 1 of the GPUs 4, 7 are free.\n"


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4,7")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "4").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="nothing is written through links"), own_gpus(locks=tmp_path / "locks"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_several_are_taken_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1,2")
    with own_gpus(2, locks=tmp_path):
        assert os.environ[VISIBLE] == "0,1"
    assert os.environ[VISIBLE] == "0,1,2"


@pytest.mark.parametrize(
    ("visible", "expected"), [("", []), ("-1", []), ("3", ["3"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])]
)
def test_what_a_scheduler_shows_is_what_there_is(visible, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(VISIBLE, visible)
    assert visible_gpus() == expected
    with own_gpus(2, locks=tmp_path / "locks"):  # no more than is needed: nothing to choose, nothing to lock
        assert os.environ[VISIBLE] == visible
    assert not (tmp_path / "locks").exists()


def test_a_killed_job_frees_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, time; from pathlib import Path; from bench.sweep.launchers import own_gpus\n"
        "with own_gpus(2, locks=Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    monkeypatch.setenv(VISIBLE, "0,1,2")
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    with job.stdout:
        assert job.stdout.readline() == "held\n"
    with own_gpus(1, locks=tmp_path):
        assert os.environ[VISIBLE] == "2"
    job.kill()
    job.wait()
    with own_gpus(2, locks=tmp_path):
        assert os.environ[VISIBLE] == "0,1"
