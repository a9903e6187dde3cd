"""What a claim's quantity is: the runs that are meant, and joint draws of a number for each arm.

An arm is selected by what is trained and how the base is kept, never by a method's name, and by settings. Scores and
losses are drawn by the engine of the decision (`paired.draws`), amounts by `evidence.amount_draws`; counts are exact.

    >>> for names, runs in sets(group, [Arm("lora"), Arm("full")], at_equal=None):
    ...     values = drawn(group, "tokens_per_second", list(runs.values()), rng, at_equal=None)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bench.config import RunConfig, flat
from bench.fairness import differences, disturbances, requirement_of
from bench.metrics import METRICS
from bench.record import TASK_KL, Record
from bench.stats.compare import match
from bench.stats.curves import SUITE, paths, reach_frame
from bench.stats.evidence import DRAWS, amount_draws
from bench.stats.frames import Group, family
from bench.stats.measures import SUITE_MEAN, means_of, measure_tables
from bench.stats.optimum import Optimum, fit
from bench.stats.paired import FEWEST_EXAMPLES, Floats, Means, draws, means
from bench.stats.rates import best_of_rates, optimum_cell, tried
from bench.stats.serving import forms_frame, forms_of, latency_ratios, results_of, timed_answers
from bench.stats.weights import FEWEST_RUNS, changes_frame, fisher

SERVED = ("unmerged_latency_ratio", "merged_latency_ratio", "merged_size_ratio", "merge_logit_difference",
          "adapter_swap_seconds")  # fmt: skip
SAME = 0.05  # arms agree in a quantity that differs by less
SPIKE_FACTOR, SPIKE_WINDOW = 3.0, 10  # a gradient norm above so many times the median of so many steps before
INSTRUCTION_TASKS = ("instructions", "ifeval")  # of the regression suite
ARMS = ("base", "base_4bit", "full", "lora", "qlora", "trained")  # the last: any of the three before it
# Quantities: of examples or steps; one number a run (columns of the runs frame); of these counts, which are exact.
EXAMPLES = ("score", *(f"score_{metric}" for metric in METRICS), "test_loss", "regression_mean",
            "instruction_following", "gradient_spike_share", "forgotten_at_equal_learning", "intruder_dimensions",
            "effective_rank")  # fmt: skip
AMOUNTS = ("peak_memory_bytes", "tokens_per_second", "train_seconds", "seconds_to_target", "cost_usd", "energy_wh")
COUNTS = ("parameters_total", "parameters_trainable", "parameters_quantized", "trainable_share", "checkpoint_bytes",
          "weights_bytes", "gradients_bytes", "optimizer_bytes")  # fmt: skip
SEARCHED = ("best_learning_rate", "forgetting_correlation_with_task_kl")  # `OF_ALL_RUNS`
QUANTITIES = (*EXAMPLES, *AMOUNTS, *COUNTS, *SERVED, *SEARCHED)
_ADAPTER = ("rank", "target_modules", "use_dora", "use_rslora", "init", "loraplus_lr_ratio", "reduce_intruders")
SETTINGS = {name: f"method.adapter.{name}" for name in _ADAPTER}
SETTINGS |= {name: f"method.quantization.{name}" for name in ("scheme", "double_quantization")}
SETTINGS |= {name: f"train.{name}" for name in ("batch_size", "weight_decay", "early_stopping_points")}
SETTINGS |= {"weights_dtype": "method.weights_dtype", "general_share": "task.general_share"}
_PUBLISHED = {"use_dora": False, "use_rslora": False, "init": "default", "loraplus_lr_ratio": None,
              "reduce_intruders": None}  # fmt: skip
Need = tuple[str, "Arm"]  # a quantity of an arm
Drawn = tuple[float, Floats, str]  # its value, its draws, what they rest on
Runs = dict["Arm", list[Record]]


class NotMeasuredError(Exception):
    """What a claim needs is not in the records; the text says what, for a person."""


@dataclass(frozen=True)
class Arm:
    """Runs by what is trained and how the base is kept, and by settings: (name, value); a pair of ends is a range."""

    family: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        asked = ", ".join(f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in self.settings)
        return f"{self.family}({asked})" if asked else self.family


# --- The runs that are meant ---


def _matching(group: Group, arm: Arm, *, searched: bool = False) -> dict[str, list[Record]]:
    """The group's arms that are meant; of those that differ in the learning rate alone the best, unless `searched`.

    Of several, those called after the family itself are meant: `full` before `full_bf16`.
    """
    found = {name: runs for name, runs in group.by_arm.items() if _fits(arm, runs[0])}
    plain = {name: runs for name, runs in found.items() if runs[0].method == arm.family} or found
    if not plain:
        raise NotMeasuredError(f"no finished run of {arm}")
    return plain if searched else best_of_rates(plain)


def _fits(arm: Arm, record: Record) -> bool:
    trained = arm.family == "trained" and family(record) in ("full", "lora", "qlora")
    if not (trained or family(record) == arm.family) or record.config.method.control:
        return False
    has = flat(asdict(record.config))
    plain = {name: usual for name, usual in _PUBLISHED.items() if name not in dict(arm.settings)}
    published = all(has.get(SETTINGS[name]) in (None, usual) for name, usual in plain.items())
    return published and all(_equal(wanted, has.get(SETTINGS[name])) for name, wanted in arm.settings)


def _equal(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, tuple) and not any(isinstance(end, str) for end in wanted):  # a range
        low, high = wanted
        return given is not None and (low is None or given >= low) and (high is None or given <= high)
    return sorted(wanted) == sorted(given) if isinstance(given, list) else bool(wanted == given)


def sets(group: Group, arms: Sequence[Arm], at_equal: str | None) -> list[tuple[tuple[str, ...], Runs]]:
    """Arms that differ in what the claim names and in the learning rate alone, with their runs matched by seed."""
    meant = [_matching(group, arm) for arm in arms]
    free = {name for arm in arms for name, _ in arm.settings}
    free |= {"alpha"} if "rank" in free else set()
    named = {SETTINGS[name] for arm in arms for name, _ in arm.settings}
    found: list[tuple[tuple[str, ...], Runs]] = []
    reasons: dict[str, None] = {}
    for names in itertools.product(*meant):
        runs = [of_arm[name] for of_arm, name in zip(meant, names, strict=True)]
        if len(set(names)) < len(names) or not _alike(group, [of_arm[0] for of_arm in runs], free, at_equal):
            continue
        first = min(range(len(runs)), key=lambda place: runs[place][0].config.untrained)
        for place in set(range(len(runs))) - {first}:  # an untrained run is the partner of every seed
            excused = _excused(runs[first][0].config, runs[place][0].config, named)
            matching = match(group, names[first], names[place], group.allowed | excused)
            reasons |= dict.fromkeys(str(reason) for _, reason in matching.refused)
            runs[first] = [left for left, _ in matching.pairs if left in runs[first]]
            runs[place] = list({right.run_id: right for _, right in matching.pairs}.values())
        if all(runs):
            found.append((names, dict(zip(arms, runs, strict=True))))
    if not found:
        who, equal = " and ".join(map(str, arms)), f" and in {at_equal}" if at_equal else ""
        refused = f"{who} may not be compared: {'; '.join(reasons)}"
        raise NotMeasuredError(refused if reasons else f"no runs of {who} agree in all other settings{equal}")
    return found


def _excused(left: RunConfig, right: RunConfig, named: set[str]) -> set[str]:
    """Requirements that two runs fail in settings alone that the claim names, and those that fail because of these."""
    found = differences(left, right)  # packages are named where there is a share of general text
    differing = {setting for setting in found if setting != "content.packages" or None not in found[setting]}
    wanted, others = ({requirement_of(setting) for setting in part} for part in (differing & named, differing - named))
    wanted |= {"stream", "budget"} if wanted - {None} else set()
    return {requirement for requirement in wanted - others if requirement}


def _alike(group: Group, records: Sequence[Record], free: set[str], at_equal: str | None) -> bool:
    """Whether parts that several methods have (adapter, quantization) agree but for `free`, and what must be equal."""
    for part in ("adapter", "quantization"):
        present = [asdict(found) for record in records if (found := getattr(record.config.method, part))]
        fixed = [{name: value for name, value in settings.items() if name not in free} for settings in present]
        if any(settings != fixed[0] for settings in fixed):
            return False
    if at_equal == "memory_budget_gib":
        fitted = all(r.config.train.micro_batch == "auto" for r in records)
        return fitted and len({r.config.hardware.memory_budget_gib for r in records}) == 1
    if at_equal is None:
        return True
    values = [_column(group, at_equal).get(record.run_id, np.nan) for record in records]
    return max(values) - min(values) <= SAME * max(values)


# --- Their numbers ---


def best_rate(group: Group, arm: Arm, rng: np.random.Generator) -> Drawn:
    """The best learning rate of the one search that the arm's runs had; raises `NotMeasuredError` without one."""
    searches = tried(_matching(group, arm, searched=True), group.sweep.tunings)
    if len(searches) != 1:
        raise NotMeasuredError(f"{len(searches) or 'no'} searches of the learning rate of {arm}")
    found = fit(searches[0])
    if isinstance(found, Optimum):
        basis = f"a parabola through {found.rates} of {len(searches[0])} rates tried with {arm}"
        return found.learning_rate, found.draws(rng, DRAWS), basis
    best, low, high = optimum_cell(searches[0])  # uniform between these on the log scale
    drawn_rates = np.exp(rng.uniform(math.log(low), math.log(high), size=DRAWS))
    return best, drawn_rates, f"{len(searches[0])} rates tried with {arm}"


def task_kl_correlation(group: Group, arm: Arm, rng: np.random.Generator) -> Drawn:
    """Rank correlation, over the arm's runs, of KL from the base on the task's prompts with what the suite's mean lost.

    Raises:
        NotMeasuredError: too few runs with both, or one of them is the same in all.
    """
    records = [run for runs in _matching(group, arm, searched=True).values() for run in runs]
    ends = {run.run_id: run.frontier.points[-1].values for run in records if run.frontier}
    kl = {run: value.value for run, values in ends.items() for value in values if value.task == TASK_KL}
    known = pd.DataFrame({"kl": kl, "lost": -pd.Series(_column(group, "regression_mean"), dtype=float)}).dropna()
    if len(known) < FEWEST_RUNS or known.nunique().min() < 2:
        counted = f"{len(known)} runs of {arm} with a suite and KL on the task (evaluation.points)"
        raise NotMeasuredError(f"{counted}; {FEWEST_RUNS} that differ are needed")
    found, middle, error = fisher(known["kl"].to_numpy(dtype=float), known["lost"].to_numpy(dtype=float))
    return found, np.tanh(rng.normal(middle, error, DRAWS)), f"{len(known)} runs"


OF_ALL_RUNS = dict(zip(SEARCHED, (best_rate, task_kl_correlation), strict=True))  # of an arm, at whatever rate


def _column(group: Group, name: str) -> dict[str, float]:
    """run_id -> its value in the runs frame, or in that of the target loss, where it is known."""
    target = name == "seconds_to_target"
    frame = (reach_frame(group) if target else group.runs).set_index("run_id")
    known = frame.get("seconds" if target else name, pd.Series(dtype=float)).dropna()
    return {str(run_id): float(value) for run_id, value in known.items()}


def drawn(
    group: Group, name: str, arms: Sequence[list[Record]], rng: np.random.Generator, at_equal: str | None
) -> list[Drawn]:
    """A quantity of several arms, given by their runs: drawn jointly."""
    runs = _seeds(max(map(len, arms)))
    if name in SERVED:
        return [_served(group, name, of_arm, rng) for of_arm in arms]
    if name in EXAMPLES:
        special, unit = _SPECIAL.get(name, (partial(_examples, name=name), "examples"))
        known = special(group, arms=arms)
        if known.examples < FEWEST_EXAMPLES:
            raise NotMeasuredError(f"only {known.examples} examples")
        sampled = draws(known, rng, DRAWS, alike=[not of_arm[0].config.untrained for of_arm in arms])
        basis = f"{known.examples} {unit}, {runs}"
        return [(float(known.mean[i]), sampled[:, i], basis) for i in range(len(arms))]
    values = _by_run(group, name, arms, at_equal)
    if name in COUNTS:
        return [(float(v.mean()), np.full(DRAWS, v.mean()), "exact") for v in values]
    sampled = amount_draws(values, rng)
    return [(float(v.mean()), sampled[:, i], runs) for i, v in enumerate(values)]


def _examples(group: Group, arms: Sequence[list[Record]], name: str) -> Means:
    tables = measure_tables(group)
    kind, _, metric = name.partition("_")
    if kind == "score":
        found = [m for m in tables if m.kind == "score" and (not metric or m.name == metric)]
    else:
        wanted = {"test_loss": ("test",), "regression_mean": (SUITE_MEAN,), "instruction_following": INSTRUCTION_TASKS}
        found = [m for m in tables if m.name in wanted[name]]
    if not found:
        raise NotMeasuredError(f"the sweep measured no {name}")
    known = means_of(tables[found[0]], arms)
    if isinstance(known, str):
        raise NotMeasuredError(known)
    return known


def _spikes(group: Group, arms: Sequence[list[Record]]) -> Means:
    """Share of steps whose gradient norm is far above those before."""
    rows = []
    for of_arm in arms:
        norms = [[s.gradient_norm for s in group.sweep.step_rows.get(run.run_id, ())] for run in of_arm]
        known = np.array(norms, dtype=float)
        if known.ndim < 2 or known.shape[1] <= SPIKE_WINDOW or not np.isfinite(known).any():
            raise NotMeasuredError(f"no gradient norms of more than {SPIKE_WINDOW} steps")
        before = np.lib.stride_tricks.sliding_window_view(known[:, :-1], SPIKE_WINDOW, axis=1)
        after = known[:, SPIKE_WINDOW:]
        rows.append((after > SPIKE_FACTOR * np.median(before, axis=2)).astype(float))
    if len({of_arm.shape[1] for of_arm in rows}) > 1:
        raise NotMeasuredError("the runs' steps are not equally many")
    return means(rows)


def _at_equal_learning(group: Group, arms: Sequence[list[Record]]) -> Means:
    """What of the suite's mean was forgotten, over the range of learning that all runs of the arms reached."""
    known = paths(group, SUITE)
    sides = [[known.of_arm.get(group.arm_of[run.run_id], {}).get(run.seed) for run in of_arm] for of_arm in arms]
    measured = [[path for path in side if path] for side in sides]
    if any(len(side) < len(of_arm) for side, of_arm in zip(measured, arms, strict=True)):
        raise NotMeasuredError("learning and forgetting were not measured along training (experiment=frontier)")
    found = known.at_equal_learning(measured)[2]
    if found is None:
        raise NotMeasuredError("the arms have no range of learning in common")
    return found


def _of_matrices(group: Group, arms: Sequence[list[Record]], column: str) -> Means:
    """A quantity of `MatrixChange`, over the matrices that all runs trained."""
    table = changes_frame(group).pivot(index="name", columns="run_id", values=column)
    if missing := [run.run_id for of_arm in arms for run in of_arm if run.run_id not in table]:
        raise NotMeasuredError(f"the weights of {', '.join(missing)} were not measured (evaluation.weights=true)")
    rows = [np.stack([table[run.run_id].to_numpy() for run in of_arm]) for of_arm in arms]
    if not np.isfinite(np.concatenate(rows)).all(axis=0).any():
        raise NotMeasuredError("the arms trained no matrix in common")
    return means(rows)


_SPECIAL: dict[str, tuple[Callable[..., Means], str]] = {  # quantity over something other than examples -> over what
    "gradient_spike_share": (_spikes, "steps"),
    "forgotten_at_equal_learning": (_at_equal_learning, "items"),
    "intruder_dimensions": (partial(_of_matrices, column="intruders"), "matrices"),
    "effective_rank": (partial(_of_matrices, column="effective_rank"), "matrices"),
}


def _by_run(group: Group, name: str, arms: Sequence[list[Record]], at_equal: str | None) -> list[Floats]:
    """One number a run, by arm."""
    records = [run for of_arm in arms for run in of_arm]
    batches = {run.train.micro_batch or run.config.train.micro_batch for run in records if run.train}
    if name in AMOUNTS and at_equal != "memory_budget_gib" and len(batches) > 1:
        raise NotMeasuredError(f"the micro-batches differ ({', '.join(map(str, sorted(batches, key=str)))})")
    if name in AMOUNTS and name != "peak_memory_bytes" and (doubts := speed_doubts(records)):
        raise NotMeasuredError("; ".join(doubts))
    known = _column(group, name)
    if any(run.run_id not in known for run in records):
        more = "; set hardware.price_usd_per_hour" if name == "cost_usd" else ""
        raise NotMeasuredError(f"{name} was not measured{more}")
    return [np.array([known[run.run_id] for run in of_arm]) for of_arm in arms]


def speed_doubts(records: Sequence[Record]) -> list[str]:
    """Why the speeds of runs should not be compared, a clause each; quality may be all the same."""
    busy = {record.run_id: text for record in records if (text := disturbances(record).get("train"))}
    governors = sorted({run.train.environment.cpu_governor or "" for run in records if run.train} - {""})
    doubts = [f"{run_id} was measured on a busy machine: {text}" for run_id, text in busy.items()]
    return doubts + [f"their processors were governed differently ({' and '.join(governors)})"] * (len(governors) > 1)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


# --- Of serving ---


def _served(group: Group, name: str, records: Sequence[Record], rng: np.random.Generator) -> Drawn:
    """A quantity of `SERVED` for one arm: its value, draws of it (counts: the value itself), what it rests on.

    unmerged_latency_ratio: total latency with the adapter beside its base / that of this base alone;
    merged_latency_ratio: of the merged 16-bit model / the 16-bit base; merged_size_ratio: bytes on disk of the merged
    model / those of the base that the adapter was trained beside; merge_logit_difference: the largest difference of a
    logit between the merged model and the adapter beside its base; adapter_swap_seconds: from an adapter's file to its
    being the active one.

    Raises:
        NotMeasuredError: the runs were not served so.
    """
    served = [record for record in records if record.serve]
    if not served:
        raise NotMeasuredError(f"{records[0].method} was not served; add serve=full to the command")
    bases, seeds = {name: form.base for name, form in forms_of(served).items()}, _seeds(len(served))
    form = "unmerged" if name == "unmerged_latency_ratio" else "merged"
    if name != "adapter_swap_seconds" and form not in bases:
        raise NotMeasuredError(f"{served[0].method} was not served {form}")
    if name in ("merge_logit_difference", "merged_size_ratio"):
        forms = forms_frame(group)
        forms = forms[forms["arm"] == group.arm_of[served[0].run_id]].set_index("form")
        error, size = (forms[column].astype(float) for column in ("logit_difference", "disk_bytes"))
        value = error["merged"] if name == "merge_logit_difference" else size["merged"] / size[str(bases["unmerged"])]
        if not np.isfinite(value):
            raise NotMeasuredError(f"{name} was not measured (serve.fidelity_examples, the base's files)")
        return float(value), np.full(DRAWS, value), f"exact, {seeds}"
    if name == "adapter_swap_seconds":
        values = [s for result in results_of(served) if result.adapters for s in result.adapters.load_seconds]
    else:
        busy = {f"served on a busy machine: {text}" for r in served if (text := disturbances(r).get("serve"))}
        if busy:
            raise NotMeasuredError("; ".join(sorted(busy)))
        values = latency_ratios(timed_answers(served), form, bases[form])
    if len(values) < 2:
        raise NotMeasuredError(f"no repetitions of {name}" + (" (serve.adapters)" if "swap" in name else ""))
    return float(np.median(values)), median_draws(values, rng, DRAWS), f"{len(values)} repetitions, {seeds}"


def median_draws(values: Sequence[float], rng: np.random.Generator, count: int) -> Floats:
    """Draws of the true median of positive values, by the binomial chances that it lies between two of them."""
    edges = np.array([0.0, *sorted(values), np.inf])
    below = rng.binomial(len(values), 0.5, size=count)
    low, high = edges[below], edges[below + 1]
    return np.asarray(np.where(np.isinf(high), high, low + (high - low) * rng.uniform(size=count)))
