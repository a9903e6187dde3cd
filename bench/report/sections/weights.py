"""What training did to the weights: norm, ranks and intruder dimensions of each method, by layer.

>>> section(group).chart.name
'weights'
"""

from __future__ import annotations

from functools import partial

from bench.report.charts import Chart, layers_chart
from bench.report.section import Column, Section, count, interval, number, table_of
from bench.stats.frames import Group
from bench.stats.weights import FEWEST_RUNS, QUANTITIES, by_layer, changes_frame, with_forgetting

_NOTE = (
    "Of each trained matrix, the change as it was saved against the base in 16 bit. Relative norm: Frobenius, against "
    "the base's matrix. Stable rank: squared Frobenius norm / squared largest singular value. Effective rank: "
    "exponential of the entropy of the singular values' shares. Rank for 90%: leading singular values that hold so "
    "much of their squares' sum. Intruder dimensions: {}. Full fine-tuning is saved in bf16: small changes are rounded "
    "to steps of the grid, which raises its ranks. Chart: means over a layer's matrices; bands from the lowest to the "
    "highest seed. Table: means over the matrices."
)
_CORRELATION = (
    "Spearman's rank correlation across runs of a run's mean with what the suite's mean lost against the base; 95% by "
    "Bonett and Wright. Seeds of one method are alike, so the interval holds for runs like these at best."
)


def section(group: Group) -> Section | None:
    """None where no weights were measured."""
    found = changes_frame(group)
    if found.empty:
        return None
    shown = by_layer(group)
    says = "Relative norm of each method's change, by layer; other quantities by choice."
    chart = Chart("weights", layers_chart(shown, list(group.arms["arm"])), says, shown) if len(shown) else None
    means = found.groupby("arm", sort=False)[list(QUANTITIES.values())].mean().reset_index()
    columns: list[Column] = [("method", str, "arm"), *((name, _number, column) for name, column in QUANTITIES.items())]
    asked = next(r.config.evaluation for r in group.records if group.sweep.change_rows.get(r.run_id))
    intruders = (
        f"of the tuned matrix's {asked.intruder_vectors} leading left singular vectors, those whose largest cosine "
        f"with the base's is below {asked.intruder_threshold:g}"
    )
    return Section("Weights", chart=chart, table=table_of(means, columns),
                   note=_NOTE.format(intruders), parts=[_correlation(group)])  # fmt: skip


def _number(value: float) -> str:
    return number(value, 4 if 0 < abs(value) < 0.1 else 1)


def _correlation(group: Group) -> Section:
    found = with_forgetting(group)
    title = "Does it predict forgetting?"
    if found.empty:
        return Section(title, lead=f"Not known: that takes a base and at least {FEWEST_RUNS} runs with a suite.")
    columns: list[Column] = [
        ("quantity", str, "quantity"),
        ("correlation with forgetting [95%]", partial(interval, digits=2), "correlation", "low", "high"),
        ("runs", count, "runs"),
    ]
    return Section(title, table=table_of(found, columns), note=_CORRELATION)
