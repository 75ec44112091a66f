"""Summarise many places: merge paths and texts that differ only in numbers, and format counts and times."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any


def group(items: Any) -> list[tuple[str, Any]]:
    """Merge items that differ only in numbers: their paths as ``layer{1,2}.{0,1}``, and one item with all numbers."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        texts = [item.path, *(getattr(item, name, "") for name in ("pattern", "inactive", *_TEXTS))]
        groups.setdefault(tuple(map(_masked, texts)), []).append(item)
    return [(_joined([item.path for item in found]), _generalised(found)) for found in groups.values()]


_NUMBER = re.compile(r"\d+")
_DECIMAL_OR_NUMBER = re.compile(r"((?<![\w.])\d+\.\d+(?!\.?\w))|\d+")
_TEXTS = ("action", "reason", "detail", "rate_at", "advice")


def _masked(text: object) -> str:
    """``text`` without its whole numbers; decimals, such as measured values, stay: they belong to one place."""
    return _DECIMAL_OR_NUMBER.sub(lambda found: found[1] or "#", str(text))


def _generalised(found: list[Any]) -> Any:
    """The first item, with all the numbers wherever the others differ from it."""
    changes = {}
    for name in _TEXTS:
        texts = [str(getattr(item, name)) for item in found if hasattr(item, name)]
        if len(set(texts)) > 1:
            columns = zip(*(re.split(r"(\d+)", text) for text in texts), strict=True)
            changes[name] = "".join(map(_of_column, columns))
    return replace(found[0], **changes)


def _joined(paths: list[str]) -> str:
    """A pattern for exactly these paths, which differ only in numbers: ``layer{1,4}.{0-2}, layer2.{0-3} (10)``."""
    unique = list(dict.fromkeys(paths))
    if len(unique) == 1:
        return unique[0] or "(root)"
    rows = sorted(tuple(int(number) for number in _NUMBER.findall(path)) for path in unique)
    texts = _NUMBER.split(unique[0])
    terms = ["".join(itertools.chain(*zip(texts, (*columns, ""), strict=True))) for columns in _products(rows)]
    return f"{', '.join(terms)} ({len(unique)})"


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
