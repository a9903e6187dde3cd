"""The table of what each of several devices did; none where every run had one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from synthetic import make_record

from bench.analysis.frame import runs_frame
from bench.record import DeviceShare, MemoryBreakdown, Record
from bench.report.devices import devices_table

GIB = 2**30


def group_of(*records: Record) -> SimpleNamespace:
    runs = runs_frame(records)
    return SimpleNamespace(records=records, runs=runs, arms=list(dict.fromkeys(runs["arm"])))


def test_one_device_needs_no_table() -> None:
    assert devices_table(group_of(make_record("full", 0), make_record("lora", 0))) == ""


def test_every_device_and_all_together() -> None:
    held = MemoryBreakdown(GIB, GIB // 2, GIB)
    shares = [DeviceShare(rank, (3 + rank) * GIB, 250.0 + 5 * rank, held) for rank in (0, 1)]
    record = make_record("full", 0)
    several = replace(record, train=replace(record.train, devices=2, strategy="fsdp", per_device=shares))
    _, _, first, second, together = devices_table(group_of(several, make_record("lora", 0))).splitlines()
    assert first == "| full | fsdp | 0 | 250 | 3.00 | 1.00 | 0.50 | 1.00 |"
    assert second == "| full | fsdp | 1 | 255 | 4.00 | 1.00 | 0.50 | 1.00 |"
    assert together.startswith("| full | fsdp | all | ")
