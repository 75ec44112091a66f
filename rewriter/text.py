"""Summarise many places: merge paths and texts that differ only in numbers, and format counts and times."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class HasPath(Protocol):
    """What belongs to a module.

    Attributes:
        path: of the module.
    """

    @property
    def path(self) -> str: ...


Item = TypeVar("Item", bound=HasPath)


def group(items: Iterable[Item], texts: Callable[[Item], Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Merge items whose paths and texts differ only in numbers.

    Returns:
        For each group its paths as ``layer{1,2}.{0,1} (4)``, and its texts with all the numbers.
    """
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for item in items:
        row = (item.path, *texts(item))
        groups.setdefault(tuple(map(_masked, row)), []).append(row)
    columns = ([list(column) for column in zip(*rows, strict=True)] for rows in groups.values())
    return [(_joined(paths), list(map(_merged, found))) for paths, *found in columns]


_NUMBER = re.compile(r"\d+")
_DECIMAL_OR_NUMBER = re.compile(r"((?<![\w.])\d+\.\d+(?!\.?\w))|\d+")
_MODULE_PATH = re.compile(r"((?=[\w.]*[A-Za-z_])\w+(?:\.\w+)+)")


def _masked(text: str) -> str:
    """``text`` without its whole numbers; decimals, such as measured values, stay: they belong to one place."""
    return _DECIMAL_OR_NUMBER.sub(lambda found: found[1] or "#", text)


def _merged(texts: Sequence[str]) -> str:
    """The text that all are, or one with exactly their module paths, and with all their other numbers."""
    if len(set(texts)) == 1:
        return texts[0]
    columns = zip(*map(_MODULE_PATH.split, texts), strict=True)
    return "".join(_terms(column) if number % 2 else _with_numbers(column) for number, column in enumerate(columns))


def _with_numbers(texts: Sequence[str]) -> str:
    return "".join(map(_of_column, zip(*(re.split(r"(\d+)", text) for text in texts), strict=True)))


def _joined(paths: Sequence[str]) -> str:
    """:func:`_terms` with the number of paths; ``(root)`` for the model itself."""
    number = len(set(paths))
    return f"{_terms(paths)} ({number})" if number > 1 else paths[0] or "(root)"


def _terms(paths: Sequence[str]) -> str:
    """A pattern for exactly these paths, which differ only in numbers: ``layer{1,4}.{0-2}, layer2.{0-3}``."""
    rows = sorted({tuple(int(number) for number in _NUMBER.findall(path)) for path in paths})
    texts = _NUMBER.split(paths[0])
    terms = ["".join(itertools.chain(*zip(texts, (*columns, ""), strict=True))) for columns in _products(rows)]
    return ", ".join(terms)


def _products(rows: Sequence[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """``rows`` as products of sets of numbers, one set per column."""
    if not rows[0]:
        return [()]
    following: dict[int, list[tuple[int, ...]]] = {}
    for first, *others in rows:
        following.setdefault(first, []).append(tuple(others))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, rest_of_rows in following.items():
        alike.setdefault(tuple(rest_of_rows), []).append(first)
    return [(_numbers(firsts), *rest) for others, firsts in alike.items() for rest in _products(others)]


def joined_groups(paths: list[str]) -> str:
    shapes: dict[str, list[str]] = {}
    for path in paths:
        shapes.setdefault(_NUMBER.sub("#", path), []).append(path)
    return ", ".join(_joined(found) for found in shapes.values())


def _of_column(texts: Sequence[str]) -> str:
    """The text that all have in one column, or their numbers."""
    return texts[0] if len(set(texts)) == 1 else _numbers([int(text) for text in dict.fromkeys(texts)])


def _numbers(numbers: Sequence[int]) -> str:
    """``{1-3,7}``, or ``7``, in the order of the places that they belong to."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs) + "}"


def counted(number: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def in_milliseconds(seconds: Mapping[str, float]) -> str:
    """``trace 12 ms, plan 3 ms``."""
    return ", ".join(f"{step} {1000 * value:.0f} ms" for step, value in seconds.items())
