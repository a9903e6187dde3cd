"""What training did to the weights, by method and layer, and whether it goes with forgetting across runs.

>>> by_layer(group)[["arm", "layer", "quantity", "value"]]
>>> with_forgetting(group)[["quantity", "correlation", "low", "high", "runs"]]
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from bench.stats.frames import Group
from bench.stats.paired import Floats

QUANTITIES = {  # as a reader sees it -> field of `MatrixChange`
    "relative norm of the change": "relative_norm",
    "stable rank": "stable_rank",
    "effective rank": "effective_rank",
    "rank for 90% of the energy": "rank_90",
    "intruder dimensions": "intruders",
}
FEWEST_RUNS = 5  # of a rank correlation
_CLOSEST = 0.99  # that the middle of a correlation's interval may come to 1: few runs may agree in order by chance


@lru_cache(maxsize=32)
def changes_frame(group: Group) -> pd.DataFrame:
    """One row a trained matrix: run_id, arm, seed and the fields of `MatrixChange`; of all runs but controls."""
    tuned = group.runs.loc[~group.runs["control"].astype(bool), "run_id"]
    frame = group.sweep.changes
    return frame[frame["run_id"].isin(tuned)].astype(dict.fromkeys(QUANTITIES.values(), float))


def by_layer(group: Group) -> pd.DataFrame:
    """arm, layer, quantity, value (mean over the layer's matrices and the seeds), low, high (of the seeds)."""
    frames = []
    for quantity, column in QUANTITIES.items():
        per_run = changes_frame(group).dropna(subset=["layer"]).groupby(["arm", "run_id", "layer"], sort=False)[column]
        seeds = per_run.mean().groupby(level=["arm", "layer"], sort=False)
        frames.append(seeds.agg(value="mean", low="min", high="max").reset_index().assign(quantity=quantity))
    return pd.concat(frames, ignore_index=True).dropna(subset=["value"])


def with_forgetting(group: Group) -> pd.DataFrame:
    """Spearman's rank correlation of a run's mean over its matrices with what the suite's mean lost against the base.

    Columns: quantity, correlation, low, high (95%), runs. Empty without a base, or with fewer than `FEWEST_RUNS` runs.
    """
    rows = []
    runs = group.runs.reindex(columns=["run_id", "family", "control", "regression_mean"]).set_index("run_id")
    base = runs.loc[(runs["family"] == "base") & ~runs["control"].astype(bool), "regression_mean"].mean()
    lost = (base - runs["regression_mean"].astype(float)).rename("lost")
    for quantity, column in QUANTITIES.items():
        means = changes_frame(group).groupby("run_id")[column].mean()
        known = pd.concat([means, lost], axis=1).dropna()
        if len(known) >= FEWEST_RUNS and known[column].nunique() > 1 and known["lost"].nunique() > 1:
            found = rank_correlation(known[column].to_numpy(), known["lost"].to_numpy())
            rows.append((quantity, *found, len(known)))
    return pd.DataFrame(rows, columns=["quantity", "correlation", "low", "high", "runs"])


def rank_correlation(left: Floats, right: Floats) -> tuple[float, float, float]:
    """Spearman's, with its 95% interval by Fisher's transformation and Bonett and Wright's variance (2000).

    Args:
        left, right: of the same runs, shape (runs,), at least `FEWEST_RUNS`; neither is the same for all.
    """
    found, middle, error = fisher(left, right)
    reach = float(stats.norm.ppf(0.975)) * error
    return found, min(math.tanh(middle - reach), found), max(math.tanh(middle + reach), found)


def fisher(left: Floats, right: Floats) -> tuple[float, float, float]:
    """(Spearman's correlation, Fisher's transform of it, the standard error of that); as `rank_correlation`."""
    found = float(stats.spearmanr(left, right).statistic)
    middle = math.atanh(np.clip(found, -_CLOSEST, _CLOSEST))
    return found, middle, math.sqrt((1 + found**2 / 2) / (len(left) - 3))
