"""The gate's verdicts on planted changes, its exit codes, what it writes, and the steps of its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up import runs, sweep_of
from synthetic import build_sweep, make_steps, write_run

from bench.compose import with_settings
from bench.mistakes import ConfigurationError
from bench.record import DataSummary, Record
from bench.stats.frames import Sweep
from bench.stats.gate import DEFAULTS, Check, exit_code, gate, limits_of, verdicts
from bench.stats.paired import means

ROOT = Path(__file__).parents[2]


LOOSE = DEFAULTS | {"regression": -5.0}  # two seeds of 60 items a task


def trained(
    later: bool = True, change: float = 0.0, examples: int = 400, slower: float = 1.0, seeds: int = 2, **parts: object
) -> Sweep:
    """A sweep of one LoRA arm; `change` of its score, and its steps take so many times as long."""
    made = runs("lora", range(seeds))
    records = [replace(r, started_at=f"2026-02-0{1 + later}T00:00:0{r.seed}Z", **parts) for r in made]
    place = np.random.default_rng(5).uniform(0.2, 0.8, 1000)
    noise = {r.run_id: np.random.default_rng([r.seed, later]).normal(0, 0.03, 1000) for r in records}
    made = sweep_of(records, scores=lambda r, n: place[n] + noise[r.run_id][n] + change, examples=examples)
    for record in records:
        rows = make_steps("lora", record.seed)
        made.step_rows[record.run_id] = [replace(row, seconds=row.seconds * slower) for row in rows]
    return made


def of(checks: Sequence[Check], limit: str) -> Check:
    (found,) = [check for check in checks if check.limit == limit]
    return found


def test_a_sweep_against_itself_passes_even_where_no_test_could_show_it() -> None:
    sweep = trained(examples=4)
    checks = gate(sweep, sweep, {})
    assert [(check.limit, check.verdict) for check in checks] == [(limit, "within") for limit in DEFAULTS]
    assert (exit_code(checks), of(checks, "quality").change, of(checks, "memory").change) == (0, 0.0, 1.0)


def test_an_equal_candidate_passes() -> None:
    checks = gate(trained(False), trained(), LOOSE)
    assert exit_code(checks) == 0
    quality = of(checks, "quality")
    assert quality.examples == 400
    assert quality.low is not None
    assert -0.01 < quality.low < 0 < (quality.high or 0)


def test_a_loss_of_five_points_is_worse_by_how_much_and_on_which_examples() -> None:
    checks = gate(trained(False), trained(change=-0.05), {})
    quality = of(checks, "quality")
    assert (exit_code(checks), quality.verdict) == (1, "worse")
    assert quality.change == pytest.approx(-0.05, abs=0.01)
    assert len(quality.worst) == 5
    assert all(lost.baseline - lost.candidate > 0.05 for lost in quality.worst)


def test_a_gain_passes() -> None:
    checks = gate(trained(False), trained(change=0.05), limits_of(["quality=0.02"]))
    assert (exit_code(checks), of(checks, "quality").verdict) == (0, "within")


def test_too_few_examples_settle_nothing_and_how_many_would_is_told() -> None:
    checks = gate(trained(False), trained(examples=8), {"quality": -0.01})
    assert of(checks, "quality").verdict == "not comparable"  # 8 of 400 in common
    checks = gate(trained(False, examples=8, seeds=1), trained(examples=8, seeds=1), {"quality": -0.01})
    quality = of(checks, "quality")
    assert (exit_code(checks), quality.verdict, quality.reason) == (2, "not settled", "fewer than 10 examples")
    assert quality.examples_to_settle is not None
    assert quality.examples_to_settle > 8


def test_other_data_are_not_comparable() -> None:
    one, other = (replace(DataSummary("f" * 64, 9, 9, 9, {}, 1, 1, ""), fingerprints={"test": c * 64}) for c in "ab")
    checks = gate(trained(False, data=one), trained(data=other), {"quality": -0.01})
    assert (exit_code(checks), of(checks, "quality").verdict) == (2, "not comparable")
    assert "test: fingerprint aaaaaaaa and bbbbbbbb" in of(checks, "quality").reason
    assert exit_code(gate(trained(False, data=one), trained(data=other), {"quality": -0.01}, allowed=["stream"])) == 0


def test_how_the_candidate_was_trained_matters_for_its_speed_alone() -> None:
    def longer(record: Record) -> Record:
        return replace(record, config=with_settings(record.config, {"train.epochs": 3}), comparison_key="other")

    new = trained()
    new.records[:] = map(longer, new.records)
    checks = gate(trained(False), new, LOOSE)
    assert [check.verdict for check in checks] == ["within", "within", "not comparable", "not comparable"]
    assert "allow_different=budget" in of(checks, "speed").reason


def test_speed_is_paired_by_step_and_memory_is_counted() -> None:
    checks = gate(trained(False), trained(slower=1.3), {"speed": 0.9, "memory": 0.5})
    assert (of(checks, "speed").verdict, of(checks, "memory").verdict) == ("worse", "worse")
    assert of(checks, "speed").change == pytest.approx(1 / 1.3)
    assert of(checks, "speed").examples == 29


def test_what_was_not_measured_is_skipped_by_default_and_missed_by_name() -> None:
    old, new = trained(False, regression=None), trained(regression=None)
    assert (of(gate(old, new, {}), "regression").verdict, exit_code(gate(old, new, {}))) == ("not measured", 0)
    assert exit_code(gate(old, new, {"regression": -1.0})) == 2


def test_arms_are_matched_by_name_and_a_missing_one_is_no_pass() -> None:
    old, new = sweep_of(runs("base full lora")), sweep_of(runs("base lora"))
    checks = gate(old, new, {"memory": 1.1})
    assert [(check.arm, check.verdict) for check in checks] == [("full", "not comparable"), ("lora", "within")]
    assert exit_code(gate(old, new, {"memory": 1.1}, ["lora"])) == 0
    assert gate(sweep_of(runs("full")), new, {"memory": 1.1})[0].arm == "lora against full"
    with pytest.raises(ConfigurationError, match="the baseline has base, full, lora"):
        gate(old, new, {}, ["lara"])


def test_an_alarm_is_adjusted_over_the_limits() -> None:
    """Five changes just beyond their limit at 5% each: alone each would be an alarm, together none is."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 50)
    change = means([np.zeros((1, 50)), values[None]]).difference(1, 0)
    bound = next(b for b in np.arange(0, 1, 0.001) if change.p_beyond(b, -1) < 0.04)
    assert verdicts([change], [bound]) == ["worse"]
    assert verdicts([change] * 5, [bound] * 5) == ["not settled"] * 5


def test_mistakes_in_the_limits_come_all_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        limits_of(["qualty=1", "speed=0", "memory=much"])
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {"qualty", "speed", "memory"}


@pytest.fixture
def sweeps(tmp_path: Path) -> Path:
    """A folder with the sweeps `last`, `same` and `worse`."""
    for name in ("last", "same"):
        build_sweep(tmp_path / "results" / name, failed=False)
    for run in trained(change=-0.3, examples=48).records:
        sweep = trained(change=-0.3, examples=48)
        write_run(tmp_path / "results/worse", run, sweep.step_rows[run.run_id], sweep.sample_rows[run.run_id], [])
    return tmp_path


def test_the_steps_of_the_page_run_as_they_stand(sweeps: Path) -> None:
    """The shell steps of the GitHub Actions example, against an equal and a worse candidate."""
    page = (ROOT / "docs" / "judge.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", page, re.S)
    assert block is not None
    steps = re.findall(r"- run: (python -m bench gate .*)", block[1])
    assert len(steps) == 1
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for candidate, code in (("same", 0), ("worse", 1)):
        step = steps[0].replace("results/next", f"results/{candidate}") + (" arm=lora" if code else "")
        done = subprocess.run(["bash", "-ec", step], cwd=sweeps, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        suite = ElementTree.parse(sweeps / "gate" / "gate.xml").getroot()[0]
        assert (suite.get("failures") != "0") == (code == 1)
        text = (sweeps / "gate" / "gate.md").read_text()
        assert text.startswith("## Gate: worse" if code else "## Gate: passed")
    assert "| example-" in text
    case = next(case for case in suite if case.get("name") == "quality")
    assert (case.get("classname"), case[0].tag) == ("lora", "failure")
    assert "example-" in (case[0].text or "")
