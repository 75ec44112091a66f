"""Models of timm, by their timm names, with or without the tag of their weights."""

from __future__ import annotations

from typing import Any

from model_zoo.entry import Entry, InputSize, Source, build, require, unknown


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    timm = require("timm", "timm>=1.0.20")
    architecture, _, tag = local.partition(".")
    if not timm.is_model(architecture):
        raise unknown(name, architecture, timm.list_models())
    if tag:
        try:
            timm.get_pretrained_cfg(local, allow_unregistered=False)
        except RuntimeError as error:
            raise unknown(name, local, timm.list_pretrained(f"{architecture}.*")) from error
    model = build(name, lambda **options: timm.create_model(local, **options), {"pretrained": pretrained}, kwargs)
    return Entry(model, name, _input_size(model, kwargs), dict(kwargs))


def _input_size(model: Any, kwargs: dict[str, Any]) -> InputSize | None:
    """From the model's configuration; the options of the constructor come first."""
    configuration = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = configuration.get("input_size")
    if size is None:
        return None
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if built_for is None:
        side = kwargs.get("img_size")
        built_for = (side, side) if isinstance(side, int) else side
    height, width = built_for if built_for is not None else size[1:]
    return int(kwargs.get("in_chans", size[0])), int(height), int(width)


def _names() -> list[str]:
    return list(require("timm", "timm>=1.0.20").list_models())


SOURCE = Source(_create, _names, "num_classes", "in_chans")
