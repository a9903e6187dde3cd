"""What was forgotten, and gained: every task of the suite by arm.

>>> regression_chart(changes)
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from bench.report.charts.look import ROW, Drawing, tooltips

_LONG = 12  # letters; longer names of arms are written slanting
_MANY = 4  # names of more arms are written slanting too: on a phone they would overlap
_INTERVAL, _NUMBER = 74, 32  # pixels that these letters need; narrower cells show their colour alone


def regression_chart(changes: pd.DataFrame) -> Drawing:
    """A heat map; orange: lost, blue: gained; each change with its interval, bold where it is shown to be one.

    Args:
        changes: task, arm, change (points), low, high (95% interval; NaN: too few items), verdict, items, against.
    """
    tasks, arms = (list(dict.fromkeys(changes[column])) for column in ("task", "arm"))
    widest = float(changes["change"].abs().max()) or 1.0
    slanting = len(arms) > _MANY or any(len(arm) > _LONG for arm in arms)
    x = alt.X("arm:N", sort=arms, title=None, axis=alt.Axis(orient="top", labelAngle=-35 * slanting))
    y = alt.Y("task:N", sort=tasks, title=None)
    every = alt.Chart(changes)
    told = tooltips({"task": "", "arm": "", "against": "", "change": "+.1f", "low": "+.1f", "high": "+.1f",
                     "verdict": "", "items": "d"})  # fmt: skip
    scale = alt.Scale(range=["#D55E00", "#F7F7F7", "#0072B2"], domain=[-widest, 0, widest])  # Okabe and Ito
    colour = alt.Color("change:Q", scale=scale, legend=alt.Legend(title="points", orient="bottom", gradientLength=150))
    cells = every.mark_rect(stroke="#888888", strokeWidth=0.5).encode(x=x, y=y, color=colour, tooltip=told)
    dark = f"datum.change > {0.6 * widest}"  # blue; dark letters are legible on every orange
    ink = alt.when(dark).then(alt.value("#FFFFFF")).otherwise(alt.value("#111111"))
    bold = alt.ExprRef("datum.verdict == 'better' || datum.verdict == 'worse' ? 'bold' : 'normal'")
    told_by = {limit: alt.ExprRef(f"width / {len(arms)} < {limit} ? 0 : 1") for limit in (_INTERVAL, _NUMBER)}
    lifted = alt.ExprRef(f"width / {len(arms)} < {_INTERVAL} ? 0 : -6")
    numbers = every.mark_text(fontSize=12, fontWeight=bold, dy=lifted, opacity=told_by[_NUMBER]).encode(
        x=x, y=y, text=alt.Text("change:Q", format="+.1f"), tooltip=told, color=ink
    )
    ends = "isValid(datum.low) ? format(datum.low, '+.1f') + ' to ' + format(datum.high, '+.1f') : ''"
    intervals = (
        every.transform_calculate(interval=ends)
        .mark_text(fontSize=10, dy=8, opacity=told_by[_INTERVAL])
        .encode(x=x, y=y, text="interval:N", tooltip=told, color=ink)
    )
    return alt.layer(cells, numbers, intervals).properties(height=1.4 * ROW * len(tasks))
