"""Names → models: ``resnet18``, ``timm:resnet18``, ``torchvision:resnet18``, ``smp:unet-resnet18``, ``zoo:uperhead``,
``hf:ViTForImageClassification``, ``diffusers:UNet2DModel``.

    entry = rewriter.zoo.create("resnet18", drop_rate=0.2)
    entry.model, entry.input_size        # a timm ResNet, (3, 224, 224)

Nothing is downloaded unless ``pretrained=True`` (or the library's own option for weights) asks for it.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from rewriter.zoo import diffusers_models, hf_models, smp_models, timm_models, torchvision_models, zoo_models
from rewriter.zoo.entry import CreationError, Entry, MissingLibrary, ModelZooError, Source, UnknownModel, nearest

SOURCES: dict[str, Source] = {
    "timm": timm_models.SOURCE,
    "torchvision": torchvision_models.SOURCE,
    "smp": smp_models.SOURCE,
    "zoo": zoo_models.SOURCE,
    "hf": hf_models.SOURCE,
    "diffusers": diffusers_models.SOURCE,
}
"""The sources of models, by the prefix of their names; a name without a prefix is a timm name."""


def create(name: str, *, pretrained: bool = False, **kwargs: Any) -> Entry:
    """Build the model called ``name``.

    Args:
        name: ``NAME`` or ``timm:NAME``, ``torchvision:NAME``, ``smp:ARCHITECTURE`` or ``smp:ARCHITECTURE-ENCODER``,
            ``zoo:HEAD``, ``zoo:HEAD-TIMMNAME`` or ``zoo:preact_resnet18``, ``hf:CLASS`` or a hub id ``hf:ORG/NAME``
            (whose configuration comes from the network), ``diffusers:CLASS``.
        pretrained: download the library's default weights (of the encoder or backbone, for ``smp`` and ``zoo``).
            Those of timm's ``tf_efficientnet_lite0`` to ``2`` are read from an installed package if it is there.
        **kwargs: options of the model's constructor; for ``hf`` of its configuration.

    Raises:
        UnknownModel: there is no such name; the message shows the nearest ones.
        MissingLibrary: the library is not installed; the message shows the command that installs it.
        CreationError: the constructor refused the options, or the weights are not available.
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


def names(pattern: str = "*", *, check: bool = True) -> list[str]:
    """Return every name that matches a glob, with or without its prefix; libraries that are not installed add none.

    A pattern with a prefix imports that library only.

    Args:
        pattern: such as ``"resnet*"``, ``"torchvision:*"`` or ``"smp:unet-*"``.
        check: omit names that cannot be built by default, which for ``hf`` takes time: every matching class is imported
            and built without memory.
    """
    found = []
    for prefix, source in SOURCES.items():
        if not _may_fit(prefix, pattern):
            continue
        try:
            local_names = source.names()
        except MissingLibrary:
            continue
        for local in local_names:
            fits = fnmatch.fnmatchcase(local, pattern) or fnmatch.fnmatchcase(f"{prefix}:{local}", pattern)
            if fits and (not check or source.is_buildable(local)):
                found.append(local if prefix == "timm" else f"{prefix}:{local}")
        if pattern.startswith(f"{prefix}:") and source.is_unlisted(pattern.partition(":")[2]):
            found.append(pattern)
    return found


def _may_fit(prefix: str, pattern: str) -> bool:
    wanted, colon, _ = pattern.partition(":")
    return not colon or "[" in wanted or fnmatch.fnmatchcase(prefix, wanted)


def quick_options(name: str) -> dict[str, Any]:
    """Return options for :func:`create` that make a trial run fast without changing the structure; usually none.

    Detection models enlarge every image; these options keep it small.
    """
    source, local = _split(name)
    try:
        return SOURCES[source].quick_options(local) if source in SOURCES else {}
    except MissingLibrary:
        return {}


def data_options(name: str, num_classes: int, channels: int) -> dict[str, Any]:
    """Return options for :func:`create` that fit a model to data; some libraries' models take only three channels."""
    source, _ = _split(name)
    if source not in SOURCES:
        return {}
    options = {SOURCES[source].class_option: num_classes, SOURCES[source].channel_option: channels}
    return {option: value for option, value in options.items() if option}


def _split(name: str) -> tuple[str, str]:
    """Return the source and the name within it; an empty source if there is more than one colon."""
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
    "SOURCES", "CreationError", "Entry", "MissingLibrary", "ModelZooError", "UnknownModel", "create",
    "data_options", "names",
    "nearest", "quick_options",
]  # fmt: skip

if __name__ != "rewriter.zoo":  # in a checkout, `import model_zoo` gives the installed `rewriter.zoo`
    import sys
    from importlib import import_module

    sys.modules[__name__] = import_module("rewriter.zoo")
