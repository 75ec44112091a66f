"""Checks of plain arguments that several functions take: flags and paths."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rewriter.errors import InputError, StorageError


def checked_flag(name: str, value: Any) -> bool:
    """``value`` as True or False; numpy's are accepted too.

    Raises:
        InputError: it is neither.
    """
    numpy = sys.modules.get("numpy")
    if isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_)):
        return bool(value)
    raise InputError(f"{name}: expected True or False, found {type(value).__name__} {value!r}")


def checked_path(name: str, value: Any) -> Path:
    """``value`` as a path.

    Raises:
        StorageError: it is not one.
    """
    try:
        path = Path(value)
    except TypeError as error:
        raise StorageError(f"{name}: expected a path, found {type(value).__name__} {value!r}") from error
    if "\0" in str(path):
        raise StorageError(f"{name}: no path can hold a NUL character, found {str(path)!r}")
    return path
