"""Learning rates: how each method's own was searched for, and what limits the search.

>>> section(group).chart.name
'learning_rate'
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bench.compose import Tuning
from bench.report.charts import Chart, rates_chart
from bench.report.section import Section, Table, known, number
from bench.stats.frames import Group
from bench.stats.rates import remarks, tunings_of, warnings

_NOTE = (
    "Each point was a training run of its own, judged by the loss on the validation split at its end; the test split "
    "was not read. Crosses diverged and could not be chosen; they are drawn at "
    "the upper edge. Ringed: the chosen rate. Two rates whose losses differ by less than two seeds' would are equally "
    "good."
)


def section(group: Group) -> Section | None:
    """The searches; without any, a folded remark on what ran untuned. None when nothing was trained."""
    searches, remarked = tunings_of(group), warnings(group)
    trials = _trials(searches)
    if trials.empty:
        return Section("Learning rates", lead=" ".join(remarked), fold=True) if remarked else None
    rows = [
        [arm, number(tuning.learning_rate, 6).rstrip("0"), str(len(tuning.trials)),
         number(sum(trial.seconds for trial in tuning.trials), 1, 1 / 60), " ".join(remarks(tuning, group.by_arm[arm]))]
        for arm, tuning in searches.items()
    ]  # fmt: skip
    table = Table(["method", "chosen rate", "tried", "search, min", "remarks"], rows)
    says = "Held-out loss at the end of each trial against its learning rate."
    chart = Chart("learning_rate", rates_chart(trials, list(group.arms["arm"])), says, trials)
    return Section("Learning rates", items=remarked, chart=chart, table=table, note=_NOTE)


def _trials(searches: Mapping[str, Tuning]) -> pd.DataFrame:
    """Columns of `rates_chart`; a loss that is not finite is drawn at the upper edge of the others."""
    rows = [(arm, t.learning_rate, t.loss, "yes" if known(t.loss) else "not finite",
             "yes" if t.learning_rate == tuning.learning_rate else "no")
            for arm, tuning in searches.items() for t in tuning.trials]  # fmt: skip
    trials = pd.DataFrame(rows, columns=["arm", "learning rate", "loss", "ended", "chosen"]).astype({"loss": float})
    ended = trials.loc[trials["ended"] == "yes", "loss"]
    if ended.empty:
        return ended.to_frame()
    ceiling = ended.max() + 0.15 * ((ended.max() - ended.min()) or 0.3)
    return trials.assign(loss=trials["loss"].fillna(ceiling).clip(upper=ceiling))
