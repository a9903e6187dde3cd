"""The paper shelf: every claim has an experiment that runs its arms, and what only these claims ask is judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up import runs, sweep_of
from synthetic import ENVIRONMENT, make_record, with_rate
from test_frontier_curves import FULL, LORA, group_with
from test_weight_changes import changes, losing

from bench.compose import CONFIG_FOLDER, compose, with_settings
from bench.record import TASK_KL, FrontierResult, Point, Record, RegressionTask
from bench.stats.claims import Claim, Part, judge, parse, read_claims
from bench.stats.frames import Group, family, groups
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


# --- Claims about settings of training ---


def trained_with(method: str, loss: float | None = None, **settings: Any) -> tuple[Record, float | None]:
    """A run with other settings of training or data, its own stream and number of steps, and a test loss."""
    record = make_record(method, 0)
    assert record.train
    asked = {f"{'task' if name == 'general_share' else 'train'}.{name}": value for name, value in settings.items()}
    name = "-".join(map(str, settings.values()))
    train = replace(record.train, data_stream_sha256=name.rjust(64, "0"), steps=3 * len(name))
    config = with_settings(record.config, asked)
    return replace(record, run_id=f"{record.run_id}-{name}", comparison_key=name, config=config, train=train), loss


def group_of(made: Sequence[tuple[Record, float | None]], alike: Mapping[str, str] | None = None) -> Group:
    answers = {record.run_id: family(record) for record, _ in made}
    sweep = sweep_of([record for record, _ in made], answers | dict(alike or {}))
    for record, loss in made:
        rows = sweep.sample_rows[record.run_id]
        if loss is not None:
            sweep.sample_rows[record.run_id] = [replace(row, loss=loss * row.loss_tokens) for row in rows]
    (group,) = groups(sweep)
    return group


def suite_mean(record: Record) -> float:
    assert record.regression
    return float(np.mean([task.value for task in record.regression.tasks if task.higher_is_better]))


def parts_of(group: Group, check: str) -> list[Part]:
    return judge(group, [Claim("mine", "says", [check])])[0].parts


def test_what_larger_batches_cost_lora_is_the_ratio_of_its_losses_to_those_of_full() -> None:
    losses = {("full", 4): 2.0, ("full", 32): 2.1, ("lora", 4): 2.0, ("lora", 32): 2.52}
    group = group_of([trained_with(method, loss, batch_size=size) for (method, size), loss in losses.items()])
    (found,) = judge(group, [CLAIMS["paper-regret-batch"]])
    assert (found.word, found.parts[0].value) == ("holds", pytest.approx(1.2))
    (part,) = parts_of(group, "test_loss(lora(batch_size=32)) / test_loss(full(batch_size=32)) > 1")
    assert (part.value, part.arms) == (pytest.approx(1.2), ("lora (batch_size=32)", "full (batch_size=32)"))


def test_only_what_a_claim_names_may_differ() -> None:
    few, many = trained_with("lora", batch_size=4), trained_with("lora", batch_size=32, epochs=3)
    check = "test_loss(lora(batch_size=32)) - test_loss(lora(batch_size=4)) > 0"
    (part,) = parts_of(group_of([few, many]), check)
    assert "may not be compared: their settings differ (train.epochs" in part.basis
    mixed, plain = trained_with("lora", general_share=0.2), trained_with("lora", general_share=None)
    config = with_settings(plain[0].config, {"content.packages": None, "task.prompt": "{code}"})
    (part,) = parts_of(
        group_of([mixed, (replace(plain[0], config=config), None)]),
        "score(lora(general_share=0.2)) - score(lora(general_share=None)) > 0",
    )
    assert "task.prompt" in part.basis


@pytest.mark.parametrize(
    ("claim", "setting", "values"),
    [
        ("paper-limits-decay", "weight_decay", (0.0, 0.1)),
        ("paper-limits-stopping", "early_stopping_points", (None, 1)),
        ("paper-limits-mixing", "general_share", (None, 0.05, 0.2)),
    ],
)
def test_what_limits_forgetting_is_judged_by_the_suite(claim: str, setting: str, values: tuple[Any, ...]) -> None:
    """Runs with the limit keep what the base can, those without it what their method keeps."""
    made = [trained_with(method, **{setting: value}) for method in ("full", "lora") for value in values]
    limited = [record for record, _ in made if not record.run_id.endswith(f"-{values[0]}")]
    (found,) = judge(group_of(made, {record.run_id: "base" for record in limited}), [CLAIMS[claim]])
    means = {method: suite_mean(make_record(method, 0)) for method in ("base", "full", "lora")}
    lost = [means["base"] - means[method] for method in ("full", "lora") for _ in values[1:]]
    assert [part.value for part in found.parts] == pytest.approx(lost)
    assert min(lost) > 0


def test_reduced_intruders_are_an_arm_of_their_own() -> None:
    plain = make_record("lora", 0)
    config = with_settings(plain.config, {"method.adapter.reduce_intruders": 0.75, "method.name": "lora_reduced"})
    reduced = replace(plain, run_id="reduced", method="lora_reduced", config=config)
    group = group_of([(plain, 2.0), (reduced, 2.01)])
    (found,) = judge(group, [CLAIMS["paper-illusion-reduction"]])
    assert [part.arms for part in found.parts] == [("lora_reduced", "lora")] * 2
    assert found.parts[1].value == pytest.approx(1.005)
    assert len(parts_of(group, "test_loss(lora) > 0")) == 1


def moved(kl: Sequence[float], lost: Sequence[float]) -> Group:
    """Runs of one method at several rates that moved so far on the task's prompts and lost so many points."""
    records = []
    for place, (distance, points) in enumerate(zip(kl, lost, strict=True)):
        record = losing(with_rate(make_record("lora", 0), 1e-4 * (1 + place)), points)
        end = Point(32, [RegressionTask(TASK_KL, "kl_from_base", distance, 60, False)])
        frontier = FrontierResult([Point(0, []), end], [], {}, ENVIRONMENT)
        records.append(replace(record, run_id=f"run-{place}", frontier=frontier))
    (group,) = groups(sweep_of(records))
    return group


def test_kl_on_the_task_that_orders_runs_as_forgetting_does_predicts_it() -> None:
    kl, claim = [0.1, 0.2, 0.4, 0.8, 1.0, 1.4, 2.0, 2.2], CLAIMS["paper-razor-kl"]
    (found,) = judge(moved(kl, [0, 1, 3, 4, 6, 7, 8, 9]), [claim])
    assert (found.word, found.parts[0].value, found.parts[0].basis) == ("holds", pytest.approx(1), "8 runs")
    (found,) = judge(moved(kl, [3, 6, 1, 8, 0, 7, 4, 2]), [claim])
    d_squared = sum((a - b) ** 2 for a, b in enumerate(np.argsort(np.argsort([3, 6, 1, 8, 0, 7, 4, 2]))))
    assert found.parts[0].value == pytest.approx(1 - 6 * d_squared / (8 * 63))  # Spearman's, without ties
    assert found.parts[0].low < found.parts[0].value < found.parts[0].high
    (found,) = judge(moved(kl[:4], [0, 1, 3, 4]), [claim])
    assert (found.word, "4 runs of trained" in found.reason) == ("not tested", True)
