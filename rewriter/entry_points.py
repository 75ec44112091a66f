"""What installed packages register: passes and sources of models.

Built-in entry points have to load; an error says why one does not. A broken one of another package is left out with a
warning, so that it affects nothing else.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

from rewriter.errors import InstallationError, RewriterWarning

PASS_GROUP = "rewriter.passes"
"""Entry points that are subclasses of :class:`rewriter.Pass`."""

MODEL_GROUP = "rewriter.models"
"""Entry points that build models: ``create(name, **kwargs)`` gives an object with ``.model``, or raises ValueError."""

_OWN = "rewriter"

_told: set[EntryPoint] = set()


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of ``group``: built-in ones first, then by distribution and name."""
    found = importlib.metadata.entry_points(group=group)
    return sorted(found, key=lambda entry: (not is_own(entry), _distribution(entry), entry.name))


def is_own(entry: EntryPoint) -> bool:
    """Whether ``entry`` is registered by this distribution."""
    return _distribution(entry) == _OWN


def load_entry_point(entry: EntryPoint) -> Any:
    """Load the object that ``entry`` names.

    Raises:
        InstallationError: it cannot be imported; the cause is the original error.
    """
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # importing a module may raise anything
        message = f"{described(entry)} cannot be loaded: {type(error).__name__}: {error}"
        raise InstallationError(f"{message}. Mend or uninstall that package.") from error


def loaded(group: str) -> Iterator[tuple[EntryPoint, Any]]:
    """Everything in ``group`` that can be loaded; the rest is left out.

    Raises:
        InstallationError: a built-in entry point cannot be loaded.
    """
    for entry in entry_points(group):
        try:
            found = load_entry_point(entry)
        except InstallationError as error:
            leave_out(entry, error)
        else:
            yield entry, found


def leave_out(entry: EntryPoint, error: InstallationError) -> None:
    """Warn, once per process, that ``entry`` is left out because of ``error``; for a built-in one, raise it."""
    if is_own(entry):
        raise error
    if entry not in _told:
        _told.add(entry)
        warnings.warn(f"left out: {error}", RewriterWarning, stacklevel=2)


def described(entry: EntryPoint) -> str:
    """The entry point and its package, for messages."""
    return f"{entry.group} entry point {entry.name!r} ({entry.value}) of {_distribution(entry) or 'an unknown package'}"


def _distribution(entry: EntryPoint) -> str:
    return str(entry.dist.name).lower() if entry.dist is not None else ""
