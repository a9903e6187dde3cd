"""Out of memory is a result: status, phase and the memory known until then, and no finished stage is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from faults import FIRST_TRAINING_FORWARD, Fault, Place, after_training, files_of, how

from bench.identity import CHECKSUMS, canonical_json, checksums
from bench.outcome import Status
from bench.record import Record

pytestmark = pytest.mark.slow

WORDS = {
    "oom": ("the CPU allocator is asked for 1 PiB there", "can't allocate memory"),
    "cuda_oom": ("`torch.OutOfMemoryError`, as CUDA raises it, is raised there", "CUDA out of memory"),
}
CALLS = {"load": 1, "forward": FIRST_TRAINING_FORWARD, "backward": 1, "optimizer": 1}  # which one fails, in training
# load, forward: by a limit, below; generate: "again". An error's words and its phase are found apart from one another.
FAILING = [("oom", "backward"), ("cuda_oom", "optimizer")]
MINIMUM_BYTES = 100 << 20  # what Python and PyTorch take alone
MANY = 16 * 1024


def failing(deed: str, place: str, finished: Place, base: Path) -> tuple[Place, Record]:
    """A fault in the training of a second run."""
    where = finished.copy(base)
    return where, where.execute("method=full", fault=Fault(deed, place, CALLS[place]))


def too_large_a_model(finished: Place, base: Path) -> tuple[Place, Record]:
    where = finished.copy(base)
    enlarge(where.base / "cache/models/tiny-random", vocabulary=12_000_000)
    return where, where.execute("method=full", "hardware.memory_limit_gib=2")


def too_large_a_batch(finished: Place, base: Path) -> tuple[Place, Record]:
    where = finished.copy(base)
    sizes = (f"train.batch_size={MANY}", f"train.micro_batch={MANY}", f"train.epochs={MANY // 16}")
    return where, where.execute("method=full", "train.max_steps=1", "hardware.memory_limit_gib=2", *sizes)


def kernel_kills(finished: Place, base: Path) -> tuple[Place, Record] | str:
    where = after_training(finished, base)
    try:
        with control_group(base.name) as group:
            return where, where.execute("method=lora", fault=Fault("kernel_oom", using=group))
    except PermissionError as error:
        return str(error)


def again(finished: Place, base: Path) -> tuple[Record, Record]:
    """The ends of a run whose evaluation has too little memory, and of the same run when it has enough."""
    where = after_training(finished, base)
    failed = where.execute("method=lora", fault=Fault("oom", "generate"))
    return failed, where.execute("method=lora")


CASES: dict[str, Callable[[Place, Path], object]] = {
    **{f"{deed} {place}": partial(failing, deed, place) for deed, place in FAILING},
    "again": again,
    "model": too_large_a_model,
    "batch": too_large_a_batch,
    "kernel": kernel_kills,
}


@pytest.mark.parametrize(("deed", "place"), FAILING)
def test_out_of_memory_names_the_phase_and_keeps_what_is_finished(deed, place, cases, finished, shows) -> None:
    where, record = cases(f"{deed} {place}")
    assert WORDS[deed][1] in record.failure.message
    assert_out_of_memory(record, "train", place)
    device = "CUDA" if deed == "cuda_oom" else "CPU"
    shows(f"{device} memory runs out: {place}", WORDS[deed][0], how(record), others_survive(where, finished))


def test_the_same_command_evaluates_what_was_trained(cases, finished, shows) -> None:
    failed, record = cases("again")
    assert_out_of_memory(failed, "evaluate", "generate")
    assert WORDS["oom"][1] in failed.failure.message
    shows("CPU memory runs out: generate", WORDS["oom"][0], how(failed), training_survives(failed, finished))
    assert record.status is Status.OK
    assert record.reused_stages == ["train"]
    assert record.evaluate.scores == finished.record("method=lora").evaluate.scores
    shows("the same command after that", "no fault", how(record), training_survives(record, finished))


def test_a_model_beyond_the_memory_limit_fails_to_load(cases, finished, shows) -> None:
    where, record = cases("model")
    assert_out_of_memory(record, "train", "load")
    injected = "a model of 3 GB in fp32, `hardware.memory_limit_gib=2`"
    shows("CPU memory runs out: load", injected, how(record), others_survive(where, finished))


def test_a_batch_beyond_the_memory_limit_fails_in_the_forward(cases, finished, shows) -> None:
    where, record = cases("batch")
    assert_out_of_memory(record, "train", "forward")
    injected = f"{MANY} examples in one micro-batch, `hardware.memory_limit_gib=2`"
    shows("CPU memory runs out: forward", injected, how(record), others_survive(where, finished))


def test_the_kernels_out_of_memory_killer_is_recognised(cases, finished, shows) -> None:
    outcome = cases("kernel")
    if isinstance(outcome, str):
        pytest.skip(outcome)
    _, record = outcome
    assert record.failure.exit_code == -9
    assert_out_of_memory(record, "evaluate", "generate")
    injected = "the child outgrows a control group of 64 MiB, the kernel kills it"
    shows("host memory runs out: the kernel's killer", injected, how(record), training_survives(record, finished))


@pytest.mark.gpu
@pytest.mark.parametrize("place", [*CALLS, "generate"])
def test_cuda_out_of_memory(place: str, finished, tmp_path: Path) -> None:
    """The same on a real device: its allocator is asked for 1 PiB."""
    where = finished.copy(tmp_path)
    fault = Fault("oom", place, CALLS.get(place, 1), using="cuda")
    record = where.execute("method=full", "hardware.device=cuda", fault=fault)
    assert record.status is Status.OOM
    assert record.failure.phase == place
    assert record.failure.last_known_peak_bytes > 0


def assert_out_of_memory(record: Record, stage: str, phase: str) -> None:
    assert record.status is Status.OOM, record.failure
    assert (record.failure.stage, record.failure.phase) == (stage, phase)
    lower = {"train": "train.micro_batch", "evaluate": "hardware.generate_batch"}[stage]
    assert lower in record.failure.next_step
    assert record.failure.last_known_peak_bytes > MINIMUM_BYTES


def others_survive(where: Place, finished: Place) -> str:
    assert files_of(where.folder("method=lora")) == files_of(finished.folder("method=lora"))
    return "the other run; the peak memory known until then"


def training_survives(record: Record, finished: Place) -> str:
    assert record.reused_stages == ["train"]
    assert record.train == finished.record("method=lora").train
    known = "; the peak memory known until then" if record.failure else ""
    return f"the training stage and its weights{known}"


@contextmanager
def control_group(name: str) -> Iterator[str]:
    """A control group (version 1 or 2) with 64 MiB and no swap; PermissionError where none can be made."""
    for root, limit, swap in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
    ):
        group = Path(root) / f"bench-test-{os.getpid()}-{name}"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 << 20))
            if (group / swap).exists():
                (group / swap).write_text("0" if swap == "memory.swap.max" else str(64 << 20))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        try:
            yield str(group)
        finally:
            group.rmdir()
        return
    raise PermissionError("no control group can be made here: it takes root and a writable /sys/fs/cgroup")


def enlarge(model: Path, vocabulary: int) -> None:
    """Give a cached model a vocabulary so large that its weights are a sparse file of some GB."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
    file = model / "model.safetensors"
    header_bytes = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + header_bytes])
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if "embed_tokens" in name:
            entry["shape"][0] = vocabulary
        size = 2
        for length in entry["shape"]:
            size *= length
        entry["data_offsets"] = [end, end + size]
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
    (model / CHECKSUMS).unlink()
    (model / CHECKSUMS).write_text(canonical_json(checksums(model, model.parents[1])))  # whole, as far as anyone knows
