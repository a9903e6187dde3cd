"""The tables of the section on serving: forms, latency, what merging changed, cost, many adapters.

>>> print(latency_table({"lora": records}))
| method | form | prompt, tokens | batch | first token, ms | ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.analysis import serving, shipping
from bench.analysis.serving import Latency, Median
from bench.analysis.shipping import Change
from bench.record import Fidelity, LogitDifference, Record
from bench.report.format import UNKNOWN, cell, mib, number, percent, table, with_interval

Arms = Mapping[str, Sequence[Record]]  # arm -> its served runs


def forms_table(arms: Arms) -> str:
    """One row a form that was timed."""
    rows = []
    for arm, records in arms.items():
        for name, form in serving.served_forms(records).items():
            loads = serving.load_seconds(records, name)
            if not loads:
                continue
            peaks = [serving.peak(records, f"{what} {name}") for what in ("load", "serve")]
            sizes = [form.disk_bytes, form.weights_bytes, *(peak.peak_bytes if peak else None for peak in peaks)]
            loading = median_text(serving.median(loads), 2)
            rows.append([cell(arm), cell(name), cell(form.is_what), *map(mib_text, sizes), loading])
    headers = ["method", "form", "what it is", "on disk, MiB", "in memory, MiB", "peak loading, MiB",
               "peak serving, MiB", "loading, s"]  # fmt: skip
    return table(headers, rows, text_columns=3)


def mib_text(size_bytes: int | None) -> str:
    """Small models keep two decimals."""
    return number(size_bytes, 2, 2**-20) if size_bytes is not None and size_bytes < 10 * 2**20 else mib(size_bytes)


def latency_table(arms: Arms) -> str:
    """One row a form, length of prompt and batch."""
    rows = [
        [
            cell(arm),
            cell(one.form),
            str(one.prompt_tokens),
            str(one.batch_size),
            median_text(one.first_token_seconds, 1, 1000),
            median_text(one.decode_tokens_per_second, 1),
            median_text(one.total_seconds, 3),
            " / ".join(number(seconds, 3) for seconds in one.rounds_total_seconds),
            median_text(one.ratio, 2),
        ]
        for arm, records in arms.items()
        for one in serving.latencies(records)
    ]
    headers = ["method", "form", "prompt, tokens", "batch", "first token, ms", "decoding, tokens/s", "total, s",
               "by round, s", "total against its base"]  # fmt: skip
    return table(headers, rows, text_columns=2)


def median_text(found: Median | None, digits: int, scale: float = 1.0) -> str:
    if found is None or found.count == 1:
        return UNKNOWN if found is None else number(found.value, digits, scale)
    return with_interval(found.value, found.low, found.high, digits, scale)


def fidelity_table(arms: Arms, changed: Mapping[str, Sequence[Change]]) -> str:
    """One row a tuned form; means over seeds, of the largest difference the largest."""
    rows = []
    for arm, records in arms.items():
        by_form = {change.form: change for change in changed[arm]}
        for form, entries in shipping.fidelities(records).items():
            rows.append([cell(arm), cell(form), *_fidelity_cells(entries, by_form.get(form))])
    headers = ["method", "form", "score", "difference [95%]", "as good", "test loss, nats/token",
               "logits moved, largest (mean)", "off exact, largest (mean)", "same token", "agreement",
               "equal answers"]  # fmt: skip
    return table(headers, rows, text_columns=2) if rows else ""


def _fidelity_cells(entries: Sequence[Fidelity], change: Change | None) -> list[str]:
    logits = [entry.logits for entry in entries if entry.logits]
    equal = [entry.equal_answers for entry in entries if entry.equal_answers is not None]
    examples = sum(entry.examples for entry in entries)
    first_metric = next(iter(entries[0].scores), None)
    own = _mean([entry.scores[first_metric] for entry in entries]) if first_metric else None
    return [
        number(change.score if change else own),
        with_interval(change.difference, change.low, change.high, sign=True) if change else UNKNOWN,
        UNKNOWN if change is None else "yes" if change.not_worse else "not shown",
        number(_mean([entry.test_loss for entry in entries])),
        _apart(logits),
        _apart([entry.exact for entry in entries if entry.exact]),
        percent(_mean([one.same_token_share for one in logits])),
        percent(_mean([entry.token_agreement for entry in entries])),
        f"{sum(equal)} of {examples}" if equal else UNKNOWN,
    ]


def _apart(found: Sequence[LogitDifference]) -> str:
    """The largest of the seeds, and the mean."""
    largest = max((one.largest for one in found if one.largest is not None), default=None)
    return f"{number(largest)} ({number(_mean([one.mean for one in found]), 4)})" if found else UNKNOWN


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def cost_table(arms: Arms) -> str:
    """One row a form, length of prompt and batch."""
    rows = []
    for arm, records in arms.items():
        price = serving.price_usd_per_hour(records)
        for one in serving.latencies(records):
            rows.append(
                [cell(arm), cell(one.form), str(one.prompt_tokens), str(one.batch_size), *_cost(one, records, price)]
            )
    headers = [
        "method",
        "form",
        "prompt, tokens",
        "batch",
        "requests/s",
        "generated tokens/s",
        "USD per million tokens",
    ]
    return table(headers, rows, text_columns=2)


def _cost(one: Latency, records: Sequence[Record], price: float | None) -> list[str]:
    new_tokens = next(int(r.serve.settings["new_tokens"]) for r in records if r.serve)
    cost = serving.cost(one, new_tokens, price)
    return [
        number(cost.requests_per_second, 2),
        number(cost.tokens_per_second, 1),
        number(cost.usd_per_million_tokens, 2),
    ]


def adapters_table(arms: Arms) -> str:
    """One row an arm."""
    rows = []
    for arm, records in arms.items():
        many = [record.serve.adapters for record in records if record.serve and record.serve.adapters]
        if not many:
            continue
        loads, activations = (
            [s for one in many for s in getattr(one, name)] for name in ("load_seconds", "activate_seconds")
        )
        slope = serving.held_bytes_per_adapter(many[0])
        rows.append(
            [
                cell(arm),
                median_text(serving.median(loads), 3),
                median_text(serving.median(activations), 3),
                mib_text(many[0].adapter_bytes),
                number(slope, 2, 2**-20),
                mib_text(many[0].copy_bytes),
                number(many[0].copy_bytes / many[0].adapter_bytes, 1),
            ]
        )
    headers = ["method", "loading, s", "activating, s", "in memory, MiB", "measured, MiB", "a full copy, MiB",
               "adapters per copy"]  # fmt: skip
    return table(headers, rows) if rows else ""
