"""Names → models: ``resnet18``, ``timm:resnet18``, ``torchvision:resnet18``, ``smp:unet-resnet18``.

    entry = model_zoo.create("resnet18", drop_rate=0.2)
    entry.model, entry.input_size        # a timm ResNet, (3, 224, 224)

Nothing is downloaded unless ``pretrained=True`` (or the library's own option for weights) asks for it.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from model_zoo import smp_models, timm_models, torchvision_models, zoo_models
from model_zoo.entry import CreationError, Entry, MissingLibrary, ModelZooError, Source, UnknownModel, nearest

SOURCES: dict[str, Source] = {
    "timm": timm_models.SOURCE,
    "torchvision": torchvision_models.SOURCE,
    "smp": smp_models.SOURCE,
    "zoo": zoo_models.SOURCE,
}
"""Where models come from, by the prefix of their names; a name without a prefix is a timm name."""


def create(name: str, *, pretrained: bool = False, **kwargs: Any) -> Entry:
    """Build the model called ``name``.

    Args:
        name: ``NAME`` or ``timm:NAME``, ``torchvision:NAME``, ``smp:ARCHITECTURE`` or ``smp:ARCHITECTURE-ENCODER``.
        pretrained: download the library's default weights (of the encoder, for ``smp``).
        **kwargs: options of the model's constructor.

    Raises:
        UnknownModel: there is no such name; the message shows the nearest ones.
        MissingLibrary: the library is not installed; the message shows the command that installs it.
        CreationError: the constructor refused the options, or the weights could not be had.
    """
    source, local = _split(name)
    if source not in SOURCES:
        known = ", ".join(f"{prefix}:NAME" for prefix in SOURCES)
        raise UnknownModel(f"unknown model {name!r}: expected a timm name or one of {known}")
    try:
        return SOURCES[source].create(name, local, pretrained, kwargs)
    except UnknownModel as error:
        if ":" in name or not _is_known("torchvision", name):
            raise
        raise UnknownModel(f"{error} (there is a torchvision:{name})") from error


def names(pattern: str = "*") -> list[str]:
    """Every name that fits a glob, with or without its prefix; libraries that are not installed contribute none.

    Args:
        pattern: such as ``"resnet*"``, ``"torchvision:*"`` or ``"smp:unet-*"``.
    """
    found = []
    for prefix, source in SOURCES.items():
        try:
            local_names = source.names()
        except MissingLibrary:
            continue
        for local in local_names:
            if fnmatch.fnmatchcase(local, pattern) or fnmatch.fnmatchcase(f"{prefix}:{local}", pattern):
                found.append(local if prefix == "timm" else f"{prefix}:{local}")
    return found


def quick_options(name: str) -> dict[str, Any]:
    """Options for :func:`create` under which a trial run is quick while the structure stays the same; mostly none.

    Detection models enlarge every image; these options keep it small.
    """
    source, local = _split(name)
    try:
        return SOURCES[source].quick_options(local) if source in SOURCES else {}
    except MissingLibrary:
        return {}


def _split(name: str) -> tuple[str, str]:
    """The source and the name within it; an empty source if there is more than one colon."""
    if ":" not in name:
        return "timm", name
    source, _, local = name.rpartition(":")
    return ("" if ":" in source else source), local


def _is_known(prefix: str, local: str) -> bool:
    try:
        return local in SOURCES[prefix].names()
    except MissingLibrary:
        return False


__all__ = [
    "SOURCES", "CreationError", "Entry", "MissingLibrary", "ModelZooError", "UnknownModel", "create", "names",
    "nearest", "quick_options",
]  # fmt: skip
