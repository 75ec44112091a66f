"""What installed packages register: passes, and sources of models.

Our own have to work, and an error says why they do not. What another package registers and is broken is left out with
a warning, so that it breaks nothing but itself.
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
"""Entry points that make models: ``create(name, **kwargs)`` returns an object with ``.model``, or raises ValueError."""

_OWN = "rewriter"

_told: set[EntryPoint] = set()


def entry_points(group: str) -> list[EntryPoint]:
    """What is registered in ``group``: our own first, then by distribution and name."""
    found = importlib.metadata.entry_points(group=group)
    return sorted(found, key=lambda entry: (not is_own(entry), _distribution(entry), entry.name))


def is_own(entry: EntryPoint) -> bool:
    """Whether this distribution registers ``entry``, not another one."""
    return _distribution(entry) == _OWN


def load_entry_point(entry: EntryPoint) -> Any:
    """What ``entry`` names.

    Raises:
        InstallationError: it cannot be imported; the cause is its error.
    """
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        message = f"{described(entry)} cannot be loaded: {type(error).__name__}: {error}"
        raise InstallationError(f"{message}. Mend or uninstall that package.") from error


def loaded(group: str) -> Iterator[tuple[EntryPoint, Any]]:
    """All that can be loaded of ``group``; what cannot be is left out.

    Raises:
        InstallationError: one of our own cannot be loaded.
    """
    for entry in entry_points(group):
        try:
            found = load_entry_point(entry)
        except InstallationError as error:
            leave_out(entry, error)
        else:
            yield entry, found


def leave_out(entry: EntryPoint, error: InstallationError) -> None:
    """Warn, once a process, that ``entry`` is not used for ``error``; one of our own raises it."""
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
