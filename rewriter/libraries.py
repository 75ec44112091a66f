"""Libraries that may be missing: their import, the error that says how to install them, their files and versions."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def load(name: str, install: str, error: type[Exception], needed_by: str = "") -> Any:
    """Import a library, or a module of it.

    Args:
        name: of the module.
        install: the command that installs the library.
        error: what is raised if it cannot be imported.
        needed_by: what needs it, for the message.

    Raises:
        error: it is not installed, with the command; or it is, and cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as reason:
        root = name.partition(".")[0]
        if reason.name is not None and reason.name.partition(".")[0] != root:  # installed, but broken: say how
            raise error(f"{_whose(needed_by)}{root} cannot be imported: {reason}") from reason
        raise missing(root, install, error, needed_by) from reason


def missing(name: str, install: str, error: type[Exception], needed_by: str = "") -> Exception:
    """The error for a library that is not installed; the arguments are those of :func:`load`."""
    return error(f"{_whose(needed_by)}{name} is not installed; install it with: {install}")


def is_installed(name: str) -> bool:
    """Whether there is a module of this name; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification
        return False


def folder(package: str) -> Path | None:
    """The folder of an installed package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(locations))) if locations else None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions by the names of libraries, without those that are not installed."""
    import importlib.metadata  # of what this module is imported for, only --version asks

    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing_of_comparisons() -> list[str]:
    """What is not installed of the libraries of the extra ``compare``."""
    return [name for name in _OF_COMPARISONS if not is_installed(name)]


_OF_COMPARISONS = (
    "accelerate", "matplotlib", "pandas", "pydantic", "rich", "scipy", "tabulate", "timm", "torchmetrics",
)  # fmt: skip


def _whose(needed_by: str) -> str:
    return f"{needed_by}: " if needed_by else ""
