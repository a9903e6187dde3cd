"""Grammatical minimal pairs: two sentences that differ in one word, of which one is English.

The pairs are generated from word lists, in the manner of BLiMP (Warstadt et al. 2020, TACL 8:377-392): every
combination is built, and an order by hash takes the first ones. Scored as whole sentences.

    >>> task = subject_verb()
    >>> task.documents[0]["choices"]
    ['The painter smile at the camera.', 'The painter smiles at the camera.']
"""

from __future__ import annotations

from itertools import product

from bench.worker.suites.documents import QuickTask, pair_task

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


def tasks() -> list[QuickTask]:
    """All minimal-pair tasks, `PAIRS_PER_TASK` items each."""
    return [subject_verb(), subject_verb_attractor(), determiner_noun(), anaphor_number(), irregular_verb()]
