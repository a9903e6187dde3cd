"""A sweep's groups as one Markdown document, by the template `templates/report.md.j2`.

>>> text = render(sweep, groups, plots={group.name: [Plot(...)]}, tables=["tables/runs.csv"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from bench.analysis.bootstrap import DRAWS
from bench.analysis.claims import Verdict
from bench.report import claims, details, evidence, fairness, fitting, limits, overfitting, targets
from bench.report.answer import Group, answer_table, controls_of
from bench.report.devices import devices_table
from bench.report.format import cell
from bench.report.load import Sweep
from bench.report.rates import warnings_of
from bench.report.serving import section as serving_section


@dataclass(frozen=True)
class Plot:
    """One figure of the report."""

    name: str  # of the kind, "loss_curves"
    heading: str
    path: str  # relative to the report
    alt: str  # for who cannot see it
    text: str  # the definition of what is shown


def render(
    sweep: Sweep,
    groups: Sequence[Group],
    *,
    plots: Mapping[str, Sequence[Plot]],
    tables: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> str:
    """The whole report.

    Args:
        plots: by the group's name.
        verdicts: on public claims, by the group's name.
        tables: paths of the CSV files, relative to the report.
    """
    # The output is Markdown, and every value from outside is escaped by `format.cell` or `format.fenced`.
    loader = jinja2.PackageLoader("bench.report")
    environment = jinja2.Environment(loader=loader, autoescape=False, undefined=jinja2.StrictUndefined)
    text = environment.get_template("report.md.j2").render(
        title=cell(", ".join(folder.name for folder in sweep.folders)),
        groups=[
            _group_values(group, plots.get(group.name, ()), verdicts.get(group.name, ()), single=len(groups) == 1)
            for group in groups
        ],
        environment=details.environment_table(sweep) or "-",
        commands=details.commands(sweep),
        failures=details.failures(sweep),
        tables=[f"[{path}]({path})" for path in tables],
        draws=f"{DRAWS:,}",
    )
    return text.rstrip() + "\n"


def _group_values(group: Group, plots: Sequence[Plot], verdicts: Sequence[Verdict], *, single: bool) -> dict[str, Any]:
    margins = group.margins
    return {
        "name": cell(group.name),
        "suffix": "" if single else f": {cell(group.name)}",
        "headline": cell(group.recommendation.headline),
        "reason": cell(group.recommendation.reason) if group.recommendation.reason else "",
        "caveats": [
            cell(caveat)
            for caveat in [*group.recommendation.caveats, *fairness.busy_caveats(group), *warnings_of(group)]
        ],
        "exceptions": fairness.exceptions_table(group),
        "allowed_flag": fairness.allowed_flag(group),
        "allowed_unused": [cell(name) for name in fairness.unused(group)],
        "answer": answer_table(group),
        "controls": ", ".join(map(cell, controls_of(group))),
        "limits": limits.section(group),
        "limits_command": limits.command(group),
        "primary_definition": _primary_definition(group),
        "plots": plots,
        "differences": evidence.differences_table(group, primary=True),
        "other_differences": evidence.differences_table(group, primary=False),
        "margins": f"{margins.score_relative:.0%} of the baseline's score, {margins.loss_relative:.0%} of its loss or "
        f"bits per byte, {100 * margins.accuracy:.0f} points of accuracy in the regression suite",
        "regression": evidence.regression_table(group),
        "divergence": evidence.divergence_table(group),
        "sensitivity": evidence.sensitivity_table(group),
        "targets": targets.section(group),
        "overfitting": overfitting.table_of(group, group.curves),
        "claims": claims.section(group, verdicts),
        "differing": evidence.differing_settings_table(group),
        "identical": evidence.identical_settings_table(group),
        "refusals": fairness.refusals_table(group),
        "speed": details.speed_table(group),
        "busy": [cell(line) for line in fairness.busy_runs(group)],
        "resumed": fitting.resumed(group),
        "fitting": fitting.section(group),
        "memory": details.memory_table(group),
        "devices": devices_table(group),
        "serving": serving_section(group),
        "wall": details.wall_time_table(group),
        "samples": details.sample_blocks(group),
    }


_DEFINITIONS = {
    "rouge1": "F1 of shared words (ROUGE-1, no stemming)",
    "rouge2": "F1 of shared word pairs (ROUGE-2, no stemming)",
    "rougeL": "F1 of the longest common word sequence (ROUGE-L, no stemming)",
    "bleu": "mean sentence BLEU (sacrebleu, effective order), 0 to 1",
    "chrf": "mean sentence chrF2 (sacrebleu), 0 to 1",
    "exact_match": "share of answers equal to the reference but for white space",
    "token_f1": "F1 of shared words as in SQuAD",
    "numeric": "share of final numbers that are right (GSM8K convention)",
    "label": "share of answers that name the right label and nothing else",
    "json_valid": "share of answers that parse as JSON",
}


def _primary_definition(group: Group) -> str:
    primary = group.findings.primary
    if primary is None:
        return "No score was measured."
    count = max((e.examples for e in group.findings.estimates if e.measure == primary), default=0)
    meaning = _DEFINITIONS.get(primary.name, "as the task defines it")
    return f"{primary.name}: {meaning}, mean over {count} test examples, the task's first metric."
