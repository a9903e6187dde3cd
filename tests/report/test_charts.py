"""Charts: frames in, one drawing for the page and for image files, in any script."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from bench.report import charts
from bench.report.charts import Chart, image, look, svg

ARMS = ["base", "full", "lora", "qlora"]
POINTS = pd.DataFrame({
    "arm": ARMS, "score": [0.14, 0.27, 0.26, 0.25], "low": [0.12, 0.24, 0.23, 0.22], "high": [0.16, 0.3, 0.29, 0.28],
    "trained": [False, True, True, True], "chosen": ["no", "no", "yes", "no"], "GiB": [np.nan, 4.65, 2.84, 2.81],
    "min": [np.nan, 1.9, 1.4, 1.7],
})  # fmt: skip
CURVES = pd.DataFrame([
    {"arm": arm, "kind": kind, "loss": 3.0 - step / 10, "low": 2.9 - step / 10, "high": 3.1 - step / 10}
    | dict.fromkeys(charts.CURVE_AXES, float(step))
    for arm in ARMS[1:] for kind in ("held-out", "training") for step in (0, 5, 10)
])  # fmt: skip
DRAWINGS = {
    "quality": charts.quality_chart(POINTS, "rougeL", ["GiB", "min"]),
    "sureness": charts.sureness_chart(
        pd.DataFrame({"limit": ["GiB", "GiB", "hours"], "start": [0.0, 1.0, 0.0], "end": [1.0, 2.0, 1.0],
                      "arm": ["none", "lora", "full"], "sureness": [1.0, 0.7, 0.8], "now": [np.nan, 1.5, np.nan]}), ARMS
    ),
    "differences": charts.differences_chart(
        pd.DataFrame({"pair": ["lora - full"], "difference": [-0.01], "low": [-0.03], "high": [0.01],
                      "verdict": ["not settled"], "tolerance": [0.013]}), "rougeL"
    ),
    "loss": charts.loss_chart(CURVES, ARMS, target=2.5),
    "memory": charts.memory_chart(
        pd.DataFrame([{"arm": "lora", "source": source, "part": part, "GiB": 1.0, "total GiB": 2.0}
                      for source in ("measured", "estimated") for part in ("weights", "the rest")])
    ),
    "regression": charts.regression_chart(
        pd.DataFrame({"task": ["capitals", "addition"], "arm": ["lora", "lora"], "change": [-3.0, 1.0],
                      "low": [-5.0, np.nan], "high": [-1.0, np.nan], "verdict": ["worse", "not settled"]})
    ),
    "steps": charts.step_time_chart(
        pd.DataFrame({"arm": ["lora"], "p10": [1.0], "p25": [2.0], "median": [3.0], "p75": [4.0], "p90": [5.0]}), ARMS
    ),
    "rates": charts.rates_chart(
        pd.DataFrame({"arm": ["lora"] * 3, "learning rate": [1e-4, 1e-3, 1e-2], "loss": [2.5, 2.4, 3.0],
                      "ended": ["yes", "yes", "not finite"], "chosen": ["no", "yes", "no"]}), ARMS
    ),
    "latency": charts.latency_chart(
        pd.DataFrame({"name": ["lora: merged"], "arm": ["lora"], "requests": ["batch 1, prompt 64"]}
                     | {f"{end}{time}": [0.5] for time in charts.LATENCY_TIMES for end in ("", "low ", "high ")}), ARMS
    ),
    "adapters": charts.adapters_chart(
        pd.DataFrame({"arm": ["lora"] * 2, "quantity": ["generated tokens/s"] * 2, "way": ["mixed"] * 2,
                      "adapters": [1, 8], "value": [100.0, 80.0]}), ARMS
    ),
}  # fmt: skip


def chart(name: str) -> Chart:
    return Chart(name, DRAWINGS[name], f"About {name}.", POINTS)


@pytest.mark.parametrize("name", DRAWINGS)
def test_one_drawing_suits_the_page_and_an_image(name: str) -> None:
    spec = chart(name).specification
    assert spec["width"] == "container"
    assert spec["background"] == "transparent"
    assert spec["description"] == f"About {name}. The numbers follow in a table."
    assert "NaN" not in json.dumps(spec)
    drawn = svg(chart(name))
    assert drawn.startswith("<svg")
    assert len(re.findall(r'class="mark-(?:symbol|rect|rule|line|area)', drawn)) > 0
    assert 'fill="white"' in drawn  # readable on a dark page, too
    assert "http" not in drawn.replace("http://www.w3.org", "")


def test_files_of_other_kinds() -> None:
    assert image(chart("quality"), "png").startswith(b"\x89PNG")
    assert image(chart("quality"), "pdf").startswith(b"%PDF")


def test_a_method_keeps_its_colour_and_shape() -> None:
    alone, among = look(["lora"]), look([*ARMS, "lora (rank=64)", "mine"])
    assert alone["lora"] == among["lora"]
    assert len(set(among.values())) == 6


@pytest.mark.parametrize("name", ["小型模型的微调", "نموذج صغير", "छोटा मॉडल", "<b>&\"'"])
def test_labels_in_any_script(name: str) -> None:
    points = POINTS.replace({"arm": {"lora": name}})
    drawn = svg(Chart("quality", charts.quality_chart(points, name, ["GiB"]), name, points))
    texts = [re.sub(r"<[^>]*>", "", text) for text in re.findall(r"<text[^>]*>(.*?)</text>", drawn, flags=re.DOTALL)]
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"{escaped}, 95% interval" in texts  # the axis
    assert escaped in texts  # the legend


def test_values_are_short() -> None:
    (rows, *_) = chart("loss").specification["datasets"].values()
    assert all(len(str(row["loss"])) <= 7 for row in rows)


def test_a_legend_fits_a_phone() -> None:
    def columns(arms: list[str]) -> int:
        points = POINTS.head(len(arms)).assign(arm=arms)
        return json.dumps(charts.quality_chart(points, "score", ["GiB"]).to_dict()).count('"columns": 1')

    assert columns(["full", "lora"]) == 0
    assert columns(["full", "lora (learning_rate=0.0002)"]) > 0
