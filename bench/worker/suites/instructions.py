"""Short instructions whose fulfilment a program can check, in the manner of IFEval (Zhou et al. 2023).

Greedy answers of at most `MAX_NEW_TOKENS` tokens. `followed` is the judge: strict about what was asked, lenient about
case and about what comes after, since the answer may be cut. The ten rules range from what a 135M chat model always
does (open a letter) to what it does one time in three (ask a question), so that loss and gain both show.

    >>> followed("copies", "I like the river", "I like the river. What about you?")
    True
"""

from __future__ import annotations

import re

from bench.worker.suites.documents import Document, QuickTask, by_hash

MAX_NEW_TOKENS = 20
ITEMS_PER_RULE = 10

_WORDS = (
    *("river", "garden", "bridge", "winter", "apple", "doctor", "paper", "window", "ocean", "candle"),
    *("mountain", "teacher", "train", "forest", "island", "button"),
)
_NAMES = ("Maria", "Peter", "Anna", "Kevin", "Laura", "Tom", "Sofia", "David", "Emma", "James", "Lucy", "Paul")
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
        *({"name": name} for name in _NAMES),
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


def tasks() -> list[QuickTask]:
    """One task, `ITEMS_PER_RULE` instructions a rule, mixed."""
    chosen = [d for rule in _TEMPLATES for d in by_hash(_instructions(rule), salt=f"rule:{rule}")[:ITEMS_PER_RULE]]
    return [QuickTask("instructions", "instruction", tuple(by_hash(chosen, salt="instructions")))]
