"""Serving: what the tuned model costs beside its base, merged, quantized, as GGUF; many adapters on one base.

>>> section(group).table.headers[:3]
['method', 'form', 'on disk, MiB']
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.record import ServeResult
from bench.report.charts import LATENCY_TIMES, Chart, adapters_chart, differences_chart, latency_chart
from bench.report.section import Column, Section, Table, difference, interval, mib, number, percent, table_of
from bench.stats.frames import Group, groups, load
from bench.stats.serving import adapters_frame, forms_frame, latency_frame

_NOTE = (
    "Score: of the form's own answers; difference from the evaluated form, paired by example, with its 95% interval. "
    "As good: shown not to be worse by more than the margin. Logit error: largest difference of a logit from "
    "the evaluated form's. Latency: total seconds against the evaluated form's, paired by repetition. Ship: of the "
    "forms that are as good, the fastest."
)
_DIFFERENCE = ("difference", "difference_low", "difference_high")
_WAYS = {
    "mixed": "several adapters in one batch",
    "swapped": "one adapter after the other",
    "copies": "a full copy for each",
}


def section(group: Group) -> Section | None:
    """None when nothing was served."""
    forms, latencies = forms_frame(group), latency_frame(group)
    if forms.empty:
        return None
    chart = None
    if len(latencies):
        data = _latencies(latencies)
        says = "Latency of each served form."
        chart = Chart("latency", latency_chart(data, list(group.arms["arm"])), says, data)
    parts = [*_shipping(forms), _sizes(forms), *([_requests(latencies)] if len(latencies) else []), *_adapters(group)]
    return Section("Serving", chart=chart, table=_forms(forms), note=_NOTE, parts=parts)


def _forms(forms: pd.DataFrame) -> Table:
    columns: list[Column] = [
        ("method", str, "arm"),
        ("form", str, "form"),
        ("advice", lambda first, best: ", ".join(["evaluated"] * first + ["ship"] * best) or "-", "evaluated", "ship"),
        ("on disk, MiB", mib, "disk_bytes"),
        ("score", number, "score"),
        ("difference [95%]", difference, *_DIFFERENCE),
        ("as good", lambda good: "-" if good is None else "yes" if good else "not shown", "as_good"),
        ("logit error", number, "logit_difference"),
        ("latency [95%]", partial(interval, digits=2), "latency_ratio", "latency_ratio_low", "latency_ratio_high"),
    ]
    return table_of(forms, columns, text_columns=3, bold="ship")


def _shipping(forms: pd.DataFrame) -> list[Section]:
    """What each step from the trained weights to what is shipped costs; none where no step was scored."""
    steps = forms[forms["made_of"].notna() & forms["difference"].notna()]
    if steps.empty:
        return []
    columns: list[Column] = [
        ("method", str, "arm"),
        ("made of", str, "made_of"),
        ("form", str, "form"),
        ("score", number, "score"),
        ("this step [95%]", difference, "change", "change_low", "change_high"),
        ("since training [95%]", difference, *_DIFFERENCE),
    ]
    names = {"difference_low": "low", "difference_high": "high", "margin": "tolerance"}
    verdicts = ["as good" if good else "not shown to be as good" for good in steps["as_good"]]
    data = steps.rename(columns=names).assign(pair=steps["arm"] + ": " + steps["form"], verdict=verdicts)
    data = data[["pair", "difference", "low", "high", "verdict", "tolerance"]]
    chart = Chart("shipping", differences_chart(data, "score"), "Change of the score by each shipped form.", data)
    note = "Paired by example. This step: against the form that it is made of. GGUF: exports with check=true."
    table = table_of(steps, columns, text_columns=3)
    return [Section("What each step of shipping costs", chart=chart, table=table, note=note)]


def judged(run: Path, result: ServeResult) -> str:
    """What judging an export of a run found, in one line."""
    (group,), entry, (evaluated, form) = groups(load(run)), result.fidelity[1], result.forms
    row: dict[Any, Any] = forms_frame(group).set_index("form").loc[form.form].to_dict()
    change = difference(row["difference"], row["difference_low"], row["difference_high"])
    ratio = interval(row["latency_ratio"], row["latency_ratio_low"], row["latency_ratio_high"], 2)
    equal = f"{entry.equal_answers} of {entry.examples} answers equal"
    cost = f"{mib(form.disk_bytes)} MiB, latency {ratio} times that of {evaluated.form}"
    return f"{form.form}: score {number(row['score'])}, {change} against the run; {equal}; {cost}."


def _latencies(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of `latency_chart`."""
    requests = [f"batch {batch}, prompt {prompt}" for batch, prompt in zip(frame["batch_size"], frame["prompt_tokens"],
                                                                          strict=True)]  # fmt: skip
    data: dict[str, Any] = {"name": frame["arm"] + ": " + frame["form"], "arm": frame["arm"], "requests": requests}
    for time, column in zip(LATENCY_TIMES, ("total_seconds", "first_token_seconds"), strict=True):
        data |= {time: frame[column], f"low {time}": frame[f"{column}_low"], f"high {time}": frame[f"{column}_high"]}
    return pd.DataFrame(data)


def _sizes(forms: pd.DataFrame) -> Section:
    columns: list[Column] = [
        ("method", str, "arm"),
        ("form", str, "form"),
        ("what it is", str, "is_what"),
        ("weights in memory, MiB", mib, "weights_bytes"),
        ("peak memory, MiB", mib, "peak_memory_bytes"),
        ("loading, s", number, "load_seconds"),
        ("equal answers", percent, "equal_answers_share"),
    ]
    return Section("Memory, loading, answers", table=table_of(forms, columns, text_columns=3), fold=True)


def _requests(latencies: pd.DataFrame) -> Section:
    rows = [
        [row["arm"], row["form"], str(row["prompt_tokens"]), str(row["batch_size"]),
         *(interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits, scale) for name, digits, scale in
           (("first_token_seconds", 1, 1000.0), ("decode_tokens_per_second", 1, 1.0), ("total_seconds", 3, 1.0),
            ("ratio", 2, 1.0))),
         number(row["requests_per_second"], 2), number(row["usd_per_million_tokens"], 2)]
        for row in latencies.to_dict("records")
    ]  # fmt: skip
    headers = ["method", "form", "prompt, tokens", "batch", "first token, ms", "decoding, tokens/s", "total, s",
               "total against its base", "requests/s", "USD per million tokens"]  # fmt: skip
    note = "Medians of the repetitions with 95% intervals. Requests/s: of a machine that always serves such requests."
    return Section("Latency and cost by request", table=Table(headers, rows, text_columns=2), note=note, fold=True)


def _adapters(group: Group) -> list[Section]:
    """Many adapters on one base; none when it was not measured."""
    many = adapters_frame(group)
    if many.empty:
        return []
    data = many.assign(way=many["way"].map(_WAYS)).rename(columns={"tokens_per_second": "tokens/s"})
    data = data[["arm", "way", "adapters", "tokens/s"]]
    says = "Generated tokens a second against the number of adapters on one base."
    columns: list[Column] = [
        ("method", str, "arm"),
        ("loading, s", number, "load_seconds"),
        ("activating, s", number, "activate_seconds"),
        ("an adapter, MiB", mib, "adapter_bytes"),
        ("measured in memory, MiB", mib, "held_bytes_per_adapter"),
        ("a full copy, MiB", mib, "copy_bytes"),
    ]
    table = table_of(many.drop_duplicates("arm"), columns)
    chart = Chart("adapters", adapters_chart(data, list(group.arms["arm"])), says, data)
    note = "Tokens/s of one device; the requests are shared out evenly among the adapters. Loading: from a file."
    return [Section("Many adapters on one base", chart=chart, table=table, note=note)]
