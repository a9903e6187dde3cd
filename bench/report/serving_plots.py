"""The report's figure of many adapters on one base: how fast requests are answered, and the memory that it takes.

>>> adapters_figure({"lora": (adapters, 16)}).savefig("adapters.png", dpi=DPI)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bench.analysis.serving import adapter_tokens_per_second
from bench.record import Adapters, Way
from bench.report.answer import Group
from bench.report.plots import GREY, finish, styles
from bench.report.serving import served_arms

_LINES: dict[Way, str] = {"mixed": "-", "swapped": "--", "copies": ":"}
WAYS: dict[Way, str] = {
    "mixed": "one batch for all adapters",
    "swapped": "a batch an adapter, swapped in turn",
    "copies": "a batch a full merged copy",
}
TEXT = (
    "Left: generated tokens/s of one device; {requests} requests are shared out evenly among the adapters. Medians "
    "with intervals. Swapped and copies: the share of one is measured, the others follow it. Right: memory held with "
    "that many adapters loaded (solid, measured), and with as many full copies (dotted: that of one, and the tensors "
    "of the others computed)."
)


def figure_of(group: Group) -> Figure | None:
    """Of the first served run of each arm; None where none has several adapters."""
    found = {
        arm: (record.serve.adapters, int(record.serve.settings["new_tokens"]))
        for arm, records in served_arms(group).items()
        for record in records[:1]
        if record.serve and record.serve.adapters
    }
    return adapters_figure(found, styles(group.arms)) if found else None


def text_of(group: Group) -> str:
    """Under the figure: what its lines mean."""
    sizes = {
        str(max(r.serve.settings["adapters"], default=0))
        for records in served_arms(group).values()
        for r in records
        if r.serve and r.serve.adapters
    }
    return TEXT.format(requests=" or ".join(sorted(sizes)))


def adapters_figure(found: Mapping[str, tuple[Adapters, int]], look: Mapping[str, dict[str, Any]]) -> Figure:
    """Args:
    found: arm -> what was measured, and the tokens of each answer.
    """
    figure = Figure(figsize=(9.5, 4.3), layout="constrained")
    speed, memory = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for arm, (many, new_tokens) in found.items():
        for way, by_count in adapter_tokens_per_second(many, new_tokens).items():
            counts = sorted(by_count)
            values = [by_count[count] for count in counts]
            errors = [[m.value - m.low for m in values], [m.high - m.value for m in values]]
            speed.errorbar(
                counts, [m.value for m in values], yerr=errors, **look[arm], ls=_LINES[way], lw=1.6, ms=5, capsize=2
            )
        held = {int(count): value for count, value in many.held_bytes.items() if value is not None}
        memory.plot(list(held), [value / 2**30 for value in held.values()], **look[arm], lw=1.6, ms=5)
        first = min(held, default=0)
        copies = [(held[first] + (count - first) * many.copy_bytes) / 2**30 for count in held]
        memory.plot(list(held), copies, color=look[arm]["color"], ls=":", lw=1.6)
    _finish(speed, "generated tokens/s")
    _finish(memory, "memory, GiB")
    handles = [Line2D([], [], label=arm, lw=1.6, ms=5, **look[arm]) for arm in found]
    handles += [Line2D([], [], label=text, color=GREY, ls=_LINES[way], lw=1.6) for way, text in WAYS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _finish(axes: Axes, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.set_xlabel("adapters on one base")
    axes.set_ylabel(label)
    axes.set_ylim(0)
    finish(axes)
