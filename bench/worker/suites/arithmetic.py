"""Small sums after one solved example, as multiple choice among four near numbers with as many digits.

>>> addition().documents[0]
{'context': '7 + 2 = 9\\n6 + 8 =', 'choices': [' 14', ' 13', ' 16', ' 12'], 'answer': 0}
"""

from __future__ import annotations

from bench.worker.suites.documents import QuickTask, by_hash, choice_task

ITEMS = 100
_LARGEST_TERM = 15


def _near_numbers(total: int, salt: str) -> list[int]:
    """Three numbers within 4 of the sum and with as many digits: neither length nor size gives it away."""
    near = [n for n in range(max(total - 4, 1), total + 5) if n != total and len(str(n)) == len(str(total))]
    return by_hash(near, salt)[:3]


def addition() -> QuickTask:
    """a + b for 2 <= a, b <= 15; each question carries one solved sum of its own."""
    terms = [(a, b) for a in range(2, _LARGEST_TERM + 1) for b in range(2, _LARGEST_TERM + 1)]
    questions = []
    for a, b in by_hash(terms, salt="addition:sums")[:ITEMS]:
        shown_a, shown_b = by_hash([pair for pair in terms if pair != (a, b)], salt=f"shown:{a}+{b}")[0]
        context = f"{shown_a} + {shown_b} = {shown_a + shown_b}\n{a} + {b} ="
        wrong = [f" {n}" for n in _near_numbers(a + b, salt=f"wrong:{a}+{b}")]
        questions.append((context, f" {a + b}", wrong))
    return choice_task("addition", questions)


def tasks() -> list[QuickTask]:
    """All arithmetic tasks."""
    return [addition()]
