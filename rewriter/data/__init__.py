"""Names → data: ``mnist5k``, ``mri-seg``, ``imagefolder:PATH``, ``torchvision:CIFAR10``, ``hf:NAME`` and more.

    source = rewriter.data.open_source("mnist5k")
    image, target = source.test[0]        # a PIL image, the number of its class

Nothing is downloaded unless ``download=True`` is given. Data shipped in packages are read from their files.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from rewriter.data.checks import check, check_trainable
from rewriter.data.registry import SOURCES, Description, Registered, SourceRequest
from rewriter.data.source import Examples, Source, Task
from rewriter.errors import DataError
from rewriter.guideline.registry import suggest


def open_source(name: str, *, root: Path | str | None = None, download: bool = False) -> Source:
    """Open the data called ``name``.

    Args:
        name: one of :func:`names`, ``imagefolder:PATH``, ``torchvision:NAME`` or ``hf:NAME``.
        root: the directory with the data of ``fashion-mnist`` or ``torchvision:NAME``, if not the usual one.
        download: whether torchvision or Hugging Face may download what is missing.

    Raises:
        DataError: there is no such source, or its package or files are missing; names the command that installs them.
    """
    module, function, description = _registered(name)
    folder = None if root is None else Path(root).expanduser()
    # imported only now: they read images with Pillow, which the library itself does not need
    opened = getattr(importlib.import_module(f"rewriter.data.{module}"), function)
    source: Source = opened(SourceRequest(name, name.partition(":")[2], folder, download, description))
    return source


def check_name(name: str) -> None:
    """Check that :func:`open_source` knows a source of this name, without opening it.

    Raises:
        DataError: it does not.
    """
    _registered(name)


def names() -> list[str]:
    """Return the names that can be opened as they are, whether or not their packages are installed."""
    return [name for name in SOURCES if ":" not in name]


def describe() -> list[Description]:
    """Return what is known of every source, without opening one or importing what it needs."""
    return [registered.description for registered in SOURCES.values()]


def _registered(name: str) -> Registered:
    prefix, colon, _ = name.partition(":")
    filled_in = {known.partition(":")[0]: known for known in SOURCES if ":" in known}
    registered = SOURCES.get(filled_in.get(prefix, "") if colon else name)
    if registered is None:
        raise DataError(f"unknown data {name!r}; {suggest(name, SOURCES)}; rewriter.data.describe() tells about them")
    return registered


__all__ = [
    "Description", "Examples", "Source", "Task", "check", "check_name", "check_trainable", "describe", "names",
    "open_source",
]  # fmt: skip
