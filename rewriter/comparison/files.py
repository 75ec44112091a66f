"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rewriter.errors import ComparisonError


def make_directory(directory: str | Path) -> Path:
    """The directory, made with its parents if it does not exist.

    Raises:
        ComparisonError: it cannot be made, or is a file.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComparisonError(f"the directory {folder} cannot be made: {error.strerror}") from error
    return folder


def write_whole(path: Path, content: bytes) -> Path:
    """Write ``content`` beside ``path``, then put it in its place; what was there stays until then.

    Raises:
        ComparisonError: it cannot be written (no room, no permission), with the name of the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise ComparisonError(
            f"{path} cannot be written: {error.strerror}. Make room or give another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path
