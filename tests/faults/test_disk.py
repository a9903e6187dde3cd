"""Disks that are full or read-only: said in words, with an exit code, and nothing finished is lost.

The file systems are real: mounted in a namespace of the test's own, which takes no root where users may have
namespaces (else these tests are skipped).
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import ROOT, Fault, Place, after_training, environment, files_of, how

from bench.identity import run_folder
from bench.outcome import Status
from bench.record import Record

pytestmark = pytest.mark.slow

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    errors: str


def steps_file_on_a_full_device(finished: Place, base: Path) -> tuple[Place, Record]:
    where = finished.copy(base)
    steps = where.folder("method=full") / "steps.jsonl"  # a link that was there before would be replaced
    return where, where.execute("method=full", fault=Fault("link to full", "load", using=str(steps)))


def weights_on_a_small_disk(finished: Place, base: Path) -> tuple[Place, Record] | str:
    where = finished.copy(base)
    mount = f'mount -t tmpfs -o size=64k tmpfs {base / "artifacts"}; exec "$@"'
    return refusal() or (where, where.execute("method=full", before=(*NAMESPACE, mount, "sh")))


def disk_fills_up(finished: Place, base: Path) -> tuple[Ended, dict[str, bytes]] | str:
    """The sweep's end on a disk that its child fills while it evaluates, and what is left of the run's files."""
    where = after_training(finished, base)
    results = base / "results"
    script = f"""
        {on_tmpfs(results, "4m")}
        {run(where.sweep("method=lora"), base / "sweep")}
        cp -a {results}/. {base}/after
    """
    if reason := refusal():
        return reason
    in_namespace(script, fault=Fault("fill", using=str(results / "filler")))
    return ended(base / "sweep"), files_of(base / "after" / "smoke" / where.folder("method=lora").name)


def results_are(state: str, finished: Place, base: Path) -> tuple[Place, Ended, Ended, Path] | str:
    """How a sweep with something to do ends, how one with nothing but the report; and the results after both."""
    where = finished.copy(base)
    results = base / "results"
    if state == "full":
        prepared = f"{on_tmpfs(results, '2m')}; head -c 4M /dev/zero > {results}/filler || true"
    else:
        prepared = f"mount --bind {results} {results}; mount -o remount,bind,ro {results}"
    script = f"""
        {prepared}
        {run(where.sweep("method=lora,full"), base / "pending")}
        {run(where.sweep("method=lora"), base / "report")}
        cp -a {results}/. {base}/after
    """
    if reason := refusal():
        return reason
    in_namespace(script)
    return where, ended(base / "pending"), ended(base / "report"), base / "after"


CASES: dict[str, Callable[[Place, Path], object]] = {
    "fills up": disk_fills_up,
    "steps": steps_file_on_a_full_device,
    "weights": weights_on_a_small_disk,
    "full": lambda finished, base: results_are("full", finished, base),
    "read-only": lambda finished, base: results_are("read-only", finished, base),
}


def test_a_full_disk_in_training_is_a_result(cases, finished, shows) -> None:
    where, record = cases("steps")
    assert record.status is Status.ERROR
    assert record.failure.phase == "train"
    assert_says_full(record)
    assert files_of(where.folder("method=lora")) == files_of(finished.folder("method=lora"))
    shows("full disk: steps", "`steps.jsonl` leads to `/dev/full`", how(record), "the other run")


def test_a_disk_too_small_for_the_weights_is_a_result(cases, finished, shows) -> None:
    where, record = given(cases("weights"))
    assert record.status is Status.ERROR
    assert record.failure.phase == "save"
    assert_says_full(record)
    assert files_of(where.folder("method=lora")) == files_of(finished.folder("method=lora"))
    shows("full disk: weights", "`paths.artifacts` is a file system of 64 KiB", how(record), "the other run")


def test_a_disk_that_fills_up_costs_the_stage_alone(cases, finished, shows) -> None:
    sweep, kept = given(cases("fills up"))
    assert sweep.code == 1
    assert "No space left on device" in sweep.errors
    assert "Traceback" not in sweep.errors
    whole = files_of(finished.folder("method=lora"))
    assert kept["train.json"] == whole["train.json"]
    assert kept["steps.jsonl"] == whole["steps.jsonl"]
    assert "record.json" not in kept
    injected = "the child fills the file system of `paths.results` while it generates"
    end = "exit code 1, said on the terminal; no record fits"
    shows("full disk: results", injected, end, "the training stage and its weights")


@pytest.mark.parametrize(
    ("state", "words"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_results_that_cannot_be_written_stop_a_sweep_before_it_trains(state, words, cases, finished, shows) -> None:
    where, pending, report, after = given(cases(state))
    assert pending.code == 2
    assert "nothing was run" in pending.errors
    assert f"paths.results: cannot write 1 MiB to '{where.base}/results/smoke' ({words})" in pending.errors
    assert report.code == 1
    assert "The report could not be written" in report.errors
    assert words in report.errors
    assert "Traceback" not in pending.errors + report.errors
    lora = run_folder(where.config("method=lora")).name
    assert files_of(after / "smoke" / lora) == files_of(finished.folder("method=lora"))
    assert not (after / "smoke" / where.folder("method=full").name).exists()
    injected = {"full": "`paths.results` is a full file system", "read-only": "`paths.results` is mounted read-only"}
    shows(f"{state} disk: before a run", injected[state], "exit code 2, before any child starts", "the finished run")
    shows(f"{state} disk: at the report", injected[state], "exit code 1, said on the terminal", "every record")


def test_results_below_a_file_stop_a_sweep_before_it_trains(finished, tmp_path: Path, shows) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "results"
    command = finished.sweep("method=full", f"paths.results={folder}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"paths.results: cannot write 1 MiB to '{folder}/smoke' (Not a directory)" in done.stderr
    assert "Traceback" not in done.stderr
    shows("no folder possible", "`paths.results` is below a file", "exit code 2, before any child starts", "everything")


def given(outcome: object) -> tuple:
    """What a case returned; a case that could not be tried says why."""
    if isinstance(outcome, str):
        pytest.skip(outcome)
    assert isinstance(outcome, tuple)
    return outcome


def refusal() -> str:
    """Why no file system can be mounted here; empty where it can."""
    tried = subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /tmp"], capture_output=True, text=True)
    return f"no user namespace with mounts here: {tried.stderr.strip()}" if tried.returncode else ""


def in_namespace(script: str, fault: Fault | None = None) -> None:
    command = [*NAMESPACE, script]
    done = subprocess.run(command, cwd=ROOT, env=environment(fault), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def on_tmpfs(folder: Path, size: str) -> str:
    """Shell: put a folder's content onto a file system of its own."""
    return (
        f"cp -a {folder} {folder}.saved; mount -t tmpfs -o size={size} tmpfs {folder}; cp -a {folder}.saved/. {folder}"
    )


def run(command: list[str], to: Path) -> str:
    """Shell: run a command whatever its exit code, and keep that and what it prints to standard error."""
    return f"code=0; {shlex.join(command)} > {to}.out 2> {to}.err || code=$?; echo $code > {to}.code"


def ended(kept: Path) -> Ended:
    return Ended(int(Path(f"{kept}.code").read_text()), Path(f"{kept}.err").read_text())


def assert_says_full(record: Record) -> None:
    assert "No space left on device" in record.failure.message
    assert "Free some space" in record.failure.next_step
