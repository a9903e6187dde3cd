"""The paper shelf: every claim has an experiment that runs its arms, and what only these claims ask is judged."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from made_up import runs, sweep_of
from synthetic import make_record
from test_frontier_curves import FULL, LORA, group_with
from test_weight_changes import changes

from bench.compose import CONFIG_FOLDER, compose, with_settings
from bench.record import Record
from bench.stats.claims import Claim, judge, parse, read_claims
from bench.stats.frames import groups
from bench.stats.quantities import _fits

CLAIMS = {claim.id: claim for claim in read_claims() if claim.id.startswith("paper-")}
SHELF = {path.stem: path.read_text() for path in (CONFIG_FOLDER / "experiment").glob("paper_*.yaml")}


@pytest.mark.parametrize("name", sorted(SHELF))
def test_an_experiment_runs_every_arm_of_its_claims(name: str) -> None:
    ids = re.findall(r"paper-[a-z0-9-]+[a-z0-9]", SHELF[name].partition("sweep:")[0])
    assert ids
    records = [replace(make_record("lora", 0), config=c) for c in compose([f"experiment={name}"], multirun=True)]
    needs = [need for claim in ids for check in CLAIMS[claim].checks for need in parse(check).needs.values()]
    for quantity, arm in needs:
        assert any(_fits(arm, record) for record in records), f"{quantity}({arm})"


def test_every_claim_has_its_experiment() -> None:
    named = {claim for text in SHELF.values() for claim in re.findall(r"paper-[a-z0-9-]+[a-z0-9]", text)}
    assert set(CLAIMS) <= named
    assert all(claim.source != "Papers on full fine-tuning against LoRA" for claim in CLAIMS.values())


def test_forgetting_at_equal_learning_is_judged() -> None:
    group = group_with({"full": FULL, "lora": LORA})  # lora forgets more, at equal learning alone
    claim = CLAIMS["paper-forgets-less-at-equal-learning"]
    (found,) = judge(group, [claim])
    assert found.word == "does not hold"
    assert "120 items" in found.parts[0].basis
    (plain,) = groups(sweep_of(runs("base full lora", (0,))))
    (found,) = judge(plain, [claim])
    assert (found.word, "experiment=frontier" in found.reason) == ("not tested", True)


def test_intruders_are_judged_over_matrices() -> None:
    records = runs("full lora", (0, 1))
    sweep = sweep_of(records)
    for record in records:
        rows = [row for place in range(8) for row in named(place, record)]
        sweep.change_rows[record.run_id] = rows
    (group,) = groups(sweep)
    assert judge(group, [CLAIMS["paper-illusion-intruders"]])[0].word == "holds"


def named(place: int, record: Record) -> list:
    """Matrices of a run: none of full's has an intruder, half of lora's have one."""
    return [
        replace(row, name=f"{place}.{row.name}", intruders=row.layer if record.method == "lora" else 0)
        for row in changes(0.01)
    ]


def test_a_variant_is_asked_for_by_its_settings_and_is_no_plain_lora() -> None:
    plain = make_record("lora", 0)
    dora = replace(plain, run_id="dora", config=with_settings(plain.config, {"method.adapter.use_dora": True}))
    plus = replace(plain, run_id="plus", config=with_settings(plain.config, {"method.adapter.loraplus_lr_ratio": 16}))
    (group,) = groups(sweep_of([plain, dora, plus]))

    def arms(check: str) -> list[tuple[str, ...]]:
        return [part.arms for part in judge(group, [Claim("mine", "says", [check])])[0].parts]

    assert len(arms("test_loss(lora) > 0")) == 1
    ((with_dora, without),) = arms("test_loss(lora(use_dora=True)) / test_loss(lora(use_dora=False)) <= 2")
    assert "use_dora=True" in with_dora
    assert "use_dora=True" not in without
