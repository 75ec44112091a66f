"""What a plan can hold: numbers, texts, lists and dicts of them."""

from __future__ import annotations

from typing import Any


def json_value(value: Any, where: str) -> Any:
    """``value`` as it is after a way through JSON: tuples are lists.

    Raises:
        TypeError: a plan cannot hold it; the message begins with ``where`` it is.
    """
    if isinstance(value, (list, tuple)):
        return [json_value(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where}: a plan holds dicts by texts, found the key {name!r}")
        return {name: json_value(item, f"{where}[{name!r}]") for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{where}: a plan holds numbers, texts, lists and dicts of them, found a {type(value).__qualname__}, {value!r}"
    )
