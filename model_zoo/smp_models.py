"""Models of segmentation_models_pytorch: ``smp:unet``, ``smp:unet-resnet18``, ``smp:fpn-tu-regnetx_002``."""

from __future__ import annotations

import inspect
from typing import Any

from rewriter.zoo.entry import CreationError, Entry, Source, build, require, unknown

_SIDE = 224


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    library = _library()
    architectures = _architectures(library)
    architecture, _, encoder = local.partition("-")
    if architecture not in architectures:
        raise unknown(name, architecture, architectures, prefix="smp:")
    constructor = architectures[architecture]
    encoders = library.encoders.get_encoder_names()
    if encoder and encoder not in encoders and not encoder.startswith("tu-"):
        raise unknown(name, encoder, encoders, prefix=f"smp:{architecture}-")
    options: dict[str, Any] = {"encoder_weights": "imagenet" if pretrained else None}
    if encoder:
        options["encoder_name"] = encoder
    _check_options(name, constructor, options | kwargs)
    model = build(name, constructor, options, kwargs)
    rebuild = {key: value for key, value in kwargs.items() if key != "encoder_weights"}
    return Entry(model, name, (int(kwargs.get("in_channels", 3)), _SIDE, _SIDE), rebuild)


def _check_options(name: str, constructor: Any, options: dict[str, Any]) -> None:
    """Refuse unknown options: smp's own encoders ignore them silently; only timm's accept more than the signature."""
    accepted = [p.name for p in inspect.signature(constructor).parameters.values() if p.kind is not p.VAR_KEYWORD]
    if str(options.get("encoder_name", "")).startswith("tu-") or "encoder_name" not in accepted:
        return
    for option in options:
        if option not in accepted:
            raise CreationError(f"{name} has no option {option!r}; its options: {', '.join(accepted)}")


def _architectures(library: Any) -> dict[str, Any]:
    base = library.base.SegmentationModel
    classes = [cls for cls in vars(library).values() if inspect.isclass(cls) and issubclass(cls, base)]
    return {cls.__name__.lower(): cls for cls in classes if cls is not base}


def _names() -> list[str]:
    library = _library()
    architectures = sorted(_architectures(library))
    encoders = library.encoders.get_encoder_names()
    return architectures + [f"{architecture}-{encoder}" for architecture in architectures for encoder in encoders]


def _is_unlisted(local: str) -> bool:
    """Whether it is one of timm's models as encoder, ``tu-NAME``, any of which is possible."""
    architecture, _, encoder = local.partition("-")
    known = architecture in _architectures(_library())
    return known and encoder.startswith("tu-") and bool(require("timm").is_model(encoder[3:]))


def _library() -> Any:
    return require("segmentation_models_pytorch")


SOURCE = Source(_create, _names, "classes", "in_channels", is_unlisted=_is_unlisted)
