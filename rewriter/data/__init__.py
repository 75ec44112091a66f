"""Names → data: ``mnist5k``, ``mri-seg``, ``imagefolder:PATH``, ``torchvision:CIFAR10``, ``hf:NAME`` and more.

    source = rewriter.data.open_source("mnist5k")
    image, target = source.test[0]        # a PIL image, the number of its class

Nothing is downloaded unless ``download=True`` asks for it. What comes in a package is read from its files.
"""

from __future__ import annotations

from pathlib import Path

from rewriter.data import hugging_face, image_folder, mri, nuclei, photos, small_images, torchvision_sets
from rewriter.data.checks import check, check_trainable
from rewriter.data.registry import Description, Registered, Request
from rewriter.data.source import Examples, Source, Task
from rewriter.errors import DataError
from rewriter.manager import suggest

_MODULES = (small_images, photos, mri, nuclei, image_folder, torchvision_sets, hugging_face)
_SOURCES: dict[str, Registered] = {
    registered.description.name: registered for module in _MODULES for registered in module.SOURCES
}
_FILLED_IN = {name.partition(":")[0]: name for name in _SOURCES if ":" in name}
"""By prefix, the names of which the user fills in the rest."""


def open_source(name: str, *, root: Path | str | None = None, download: bool = False) -> Source:
    """Open the data called ``name``.

    Args:
        name: one of :func:`names`, ``imagefolder:PATH``, ``torchvision:NAME`` or ``hf:NAME``.
        root: the folder that holds the data of ``fashion-mnist`` or ``torchvision:NAME``, if it is not their usual one.
        download: whether torchvision or Hugging Face may download what is missing.

    Raises:
        DataError: there is no such source, or its package or files are missing; with the command that installs them.
    """
    prefix, colon, local = name.partition(":")
    registered = _SOURCES.get(_FILLED_IN.get(prefix, "") if colon else name)
    if registered is None:
        raise DataError(f"unknown data {name!r}; {suggest(name, _SOURCES)}; rewriter.data.describe() tells about them")
    return registered.open(Request(name, local, None if root is None else Path(root).expanduser(), download))


def names() -> list[str]:
    """The names that can be opened as they are, whether or not their packages are installed."""
    return [name for name in _SOURCES if ":" not in name]


def describe() -> list[Description]:
    """What is known of every source, without opening one or importing what it needs."""
    return [registered.description for registered in _SOURCES.values()]


__all__ = [
    "Description", "Examples", "Source", "Task", "check", "check_trainable", "describe", "names", "open_source",
]  # fmt: skip
