"""A gate's outcome for people and for programs: a Markdown comment, and JUnit XML, which every CI system shows.

>>> print(markdown(checks, "results/last", "results/next"))
## Gate: worse
...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bench.identity import write_atomic
from bench.report.markdown import line
from bench.stats.gate import Check, exit_code
from bench.trust import printable

OUTCOME = {0: "passed", 1: "worse", 2: "not settled, or not comparable"}
_DIGITS = {"quality": 4, "regression": 2, "speed": 3, "memory": 3}
_TAGS = {"worse": "failure", "not settled": "error", "not comparable": "error", "not measured": "skipped"}  # of JUnit


def write(checks: Sequence[Check], baseline: Path, candidate: Path, folder: Path) -> list[str]:
    """Write gate.xml and gate.md into a folder; returns what to say, a line each."""
    write_atomic(folder / "gate.xml", junit(checks))
    write_atomic(folder / "gate.md", markdown(checks, str(baseline), str(candidate)))
    return [*map(sentence, checks), f"Gate: {OUTCOME[exit_code(checks)]}. {folder / 'gate.md'}"]


def sentence(check: Check) -> str:
    """What a check found, in one line."""
    digits, least = _DIGITS[check.limit], "at most" if check.limit == "memory" else "at least"
    text = f"{check.arm}, {check.limit}: {check.verdict}"
    if check.change is not None:
        signed = "+" if check.limit in ("quality", "regression") else ""
        text += f"; {check.change:{signed}.{digits}f}"
        if check.low is not None and check.high is not None:
            text += f" (90% interval {check.low:{signed}.{digits}f} to {check.high:{signed}.{digits}f})"
        text += f", {least} {check.bound:g} is allowed"
    if check.examples is not None:
        text += f", on {check.examples} {'steps' if check.limit == 'speed' else 'examples'}"
    if check.examples_to_settle is not None:
        text += f"; about {check.examples_to_settle} would settle it"
    return text + (f"; {check.reason}" if check.reason else "")


def markdown(checks: Sequence[Check], baseline: str, candidate: str) -> str:
    """A comment for a pull request: the outcome, a line each check, and the examples that lost most."""
    blocks = [f"## Gate: {OUTCOME[exit_code(checks)]}", f"{line(candidate)} against {line(baseline)}."]
    blocks.append("\n".join(f"- {line(sentence(check))}" for check in checks))
    for check in (check for check in checks if check.worst):
        rows = [f"| {line(one.name)} | {one.baseline:.3f} | {one.candidate:.3f} |" for one in check.worst]
        head = ["| example | baseline | candidate |", "| :--- | ---: | ---: |"]
        blocks += [f"**{line(check.arm)}, {check.limit}: the largest losses**", "\n".join([*head, *rows])]
    return "\n\n".join(blocks) + "\n"


def junit(checks: Sequence[Check]) -> str:
    """One test case a check; worse is a failure, not settled or not comparable an error, not measured skipped."""
    suite = ElementTree.Element("testsuite", name="bench gate", tests=str(len(checks)))
    for tag, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(plural, str(sum(_TAGS.get(check.verdict) == tag for check in checks)))
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=printable(check.arm), name=check.limit)
        if check.verdict in _TAGS:
            found = ElementTree.SubElement(case, _TAGS[check.verdict], message=printable(sentence(check)))
            found.text = "\n".join(f"{printable(w.name)}: {w.baseline:.3f} -> {w.candidate:.3f}" for w in check.worst)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
