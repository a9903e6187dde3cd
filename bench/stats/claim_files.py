"""The claims of `conf/claims/`, read and checked: every mistake of every file at once.

>>> claims = read_claims()
>>> claims[0].id, claims[0].source
('mem-order', 'LoRA vs QLoRA vs Full Fine-Tuning ...')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from bench.compose import CONFIG_FOLDER
from bench.config import ConfigurationError, suggest
from bench.stats.claim import Arm, Check, Claim, ClaimFile, Family, Needs

CLAIMS_FOLDER = CONFIG_FOLDER / "claims"
_EXPECTATIONS = ("order", "expect", "above", "below", "one_of")


def read_claims(folder: Path = CLAIMS_FOLDER) -> list[Claim]:
    """Every claim of the folder's `*.yaml`, by file name and in the order of the file.

    Raises:
        ConfigurationError: with every mistake of every file.
    """
    files: dict[str, Any] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            files[path.name] = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problems.append(f"{path.name}: not YAML ({' '.join(str(error).split())})")
    try:
        claims = from_mappings(files)
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return claims


def from_mappings(files: Mapping[str, Any]) -> list[Claim]:
    """The claims of several files, checked.

    Args:
        files: file name -> its content as YAML reads it.

    Raises:
        ConfigurationError: with every mistake of every file.
    """
    claims: list[Claim] = []
    problems: list[str] = []
    for name, content in files.items():
        try:
            read = TypeAdapter(ClaimFile).validate_python(content)
        except ValidationError as error:
            problems += [f"{name}: {_explain(e, content)}" for e in error.errors(include_url=False)]
            continue
        claims += [replace(claim, source=claim.source or read.source) for claim in read.claims]
        problems += [
            f"{name}: {claim.id}.checks.{place}: {text}"
            for claim in read.claims
            for place, check in enumerate(claim.checks)
            for text in _inconsistencies(check)
        ]
    ids = [claim.id for claim in claims]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    problems += [f"{name}: two claims have this id; give each its own" for name in twice]
    if problems:  # a claim of a file that could not be read must not look unknown
        raise ConfigurationError(problems)
    for claim in claims:
        unknown = [other for other in claim.contradicts if other not in ids]
        problems += [f"{claim.id}.contradicts: no claim {other!r}{suggest(other, ids)}" for other in unknown]
    if problems:
        raise ConfigurationError(problems)
    return claims


def _inconsistencies(check: Check) -> Iterator[str]:
    """Mistakes that only show between the keys of one check."""
    given = [name for name in _EXPECTATIONS if getattr(check, name) is not None]
    if len(given) != 1:
        yield f"{' and '.join(given) or 'no expectation'} given; give exactly one of {', '.join(_EXPECTATIONS)}"
    if check.order is not None:
        names = {name for left, _, right in check.pairs() for name in (left, right)}
        allowed = get_args(Family)
        if not names or names - set(allowed):
            yield f"order: {check.order!r} is not of the form 'full > lora, qlora'; methods: {', '.join(allowed)}"
        if check.of or check.against or check.form != "value":
            yield "order names the methods itself; leave out of, against and form"
    elif check.of is None:
        yield "of: missing; name a method, for example lora"
    elif (check.against is None) != (check.form == "value"):
        yield f"form: {check.form!r} and against: {check.against and check.against.method!r}; give both or neither"
    if check.expect is not None and _empty(check.expect):
        yield f"expect: {list(check.expect)} holds no number; give [lowest, highest], null for an open end"
    if check.by != "interval" and (check.expect is None or None in check.expect):
        yield f"by: {check.by} needs expect with both ends: the largest differences that are of no matter"
    if (check.one_of is not None) != (check.quantity == "trainable_dtype"):
        yield "one_of: for quantity trainable_dtype, and only for it"
    if check.quantity.endswith("_drop") and check.order is None and check.against is None:
        yield "a drop is one against another arm; give against (for example base) and form: difference"
    if check.metric is not None and check.quantity != "score":
        yield "metric: only for quantity score"


def _empty(bounds: tuple[float | None, float | None]) -> bool:
    low, high = bounds
    return (low is None and high is None) or (low is not None and high is not None and low > high)


def _explain(error: Any, content: Any) -> str:
    """One pydantic error as a line; a claim is named by its id where it has one."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "the file"
    if location[:1] == ["claims"] and len(location) > 1:
        claim = content["claims"][int(location[1])]
        if isinstance(claim, Mapping) and "id" in claim:
            key = ".".join([str(claim["id"]), *location[2:]])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such key{suggest(location[-1], _known_keys(location))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; given {error['input']!r}"


def _known_keys(location: list[str]) -> list[str]:
    """The keys that are allowed beside the last of `location`."""
    owners = {"claims": Claim, "checks": Check, "needs": Needs, "of": Arm, "against": Arm}
    owner: Any = next((owners[part] for part in reversed(location[:-1]) if part in owners), ClaimFile)
    return [f.name for f in fields(owner)]
