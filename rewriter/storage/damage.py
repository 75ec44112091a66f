"""Errors for files of saved models that cannot be read, or have unexpected content."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from rewriter.errors import PlanError, StorageError


@contextlib.contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Report any error while a file is read or used as damage to that file.

    Raises:
        StorageError: naming the file.
    """
    try:
        yield
    except (StorageError, PlanError):
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged or cannot be read: {type(error).__name__}: {error}") from error
    except safetensors.SafetensorError as error:
        raise StorageError(f"{path} is damaged: {error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        StorageError: it cannot be read, or is not JSON.
    """
    with damage_of(path):
        return json.loads(path.read_text(encoding="utf-8"))
