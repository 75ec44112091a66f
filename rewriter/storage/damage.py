"""Files of saved models that cannot be read, or do not hold what they should."""

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
    """What goes wrong while a file is read or used is that file's damage.

    Raises:
        StorageError: naming it.
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
    """What a file holds.

    Raises:
        StorageError: it cannot be read, or is not JSON.
    """
    with damage_of(path):
        return json.loads(path.read_text(encoding="utf-8"))
