"""Vision models of transformers: ``hf:ViTForImageClassification``, or from the hub ``hf:microsoft/resnet-18``.

A class is built from its default configuration with random weights. Only a hub id needs the network: for its
configuration, and with ``pretrained=True`` for its weights.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from rewriter.image_size import configured_channels, configured_size
from rewriter.zoo.entry import CreationError, Entry, InputSize, Source, build, require, unknown

_TASKS = ("IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "OBJECT_DETECTION")
"""Tasks whose auto mappings are read."""

_SIDE = 224
"""Height and width in pixels if the configuration does not give them."""

_DEFAULTS: dict[str, dict[str, Any]] = {"BeitForSemanticSegmentation": {"out_indices": [3, 5, 7, 11]}}
"""Options for classes that refuse their own default configuration, as their error messages request."""


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    transformers = _library()
    if "/" in local:
        model = _from_hub(transformers, name, local, pretrained, kwargs)
    elif local not in _names():
        raise unknown(name, local, _names(), prefix="hf:")
    elif pretrained:
        raise CreationError(f"{name} is a class without weights; give the hub id of a model: hf:ORGANISATION/NAME")
    else:
        constructor = functools.partial(_from_options, transformers, local)
        model = build(name, constructor, _DEFAULTS.get(local, {}), kwargs)
    return Entry(model, name, _input_size(model), dict(kwargs))


def _from_options(transformers: Any, class_name: str, **options: Any) -> Any:
    cls = getattr(transformers, class_name)
    _check_options(cls.config_class(), options)
    return cls(cls.config_class(**options))


def _from_hub(transformers: Any, name: str, hub_id: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """Build the class named in the hub's configuration, with its weights if requested."""
    try:
        config = transformers.AutoConfig.from_pretrained(hub_id)
    except Exception as error:
        message = " ".join(str(error).split()) or "no message"
        raise CreationError(
            f"{name}: its configuration could not be had from the Hugging Face hub, which needs the network: "
            f"{type(error).__name__}: {message}"
        ) from error
    cls = getattr(transformers, (config.architectures or [""])[0], None)
    if not _takes_images(cls):
        raise CreationError(f"{name}: expected a vision model of transformers, its configuration names {cls}")

    def constructor(**options: Any) -> Any:
        _check_options(config, options)
        if pretrained:
            return cls.from_pretrained(hub_id, **options)  # type: ignore[union-attr]
        return cls(type(config).from_dict(config.to_dict() | options))  # type: ignore[misc]

    return build(name, constructor, {}, kwargs)


def _check_options(config: Any, options: dict[str, Any]) -> None:
    """Refuse unknown options, which transformers itself accepts and ignores."""
    parameters = inspect.signature(type(config)).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    accepted = sorted({*config.to_dict(), *named, *config.attribute_map, "num_labels"})
    for option in options:
        if option not in accepted:
            raise ValueError(f"{type(config).__name__} has no option {option!r}; its options: {', '.join(accepted)}")


def _takes_images(cls: Any) -> bool:
    return getattr(cls, "main_input_name", None) == "pixel_values"


def _input_size(model: Any) -> InputSize:
    found, channels = configured_size(model), configured_channels(model)
    return channels[0] if channels else 3, *(found.height_and_width if found is not None else (_SIDE, _SIDE))


def _library() -> Any:
    return require("transformers")


def _names() -> list[str]:
    """Return every class of the auto mappings; reading them imports no model."""
    mappings = require("transformers.models.auto.modeling_auto")
    found: dict[str, None] = {}
    for task in _TASKS:
        for classes in getattr(mappings, f"MODEL_FOR_{task}_MAPPING_NAMES").values():
            found.update(dict.fromkeys((classes,) if isinstance(classes, str) else classes))
    return list(found)


@functools.cache
def _is_buildable(local: str) -> bool:
    """Whether the class takes images and its default configuration builds it."""
    transformers = _library()
    with contextlib.suppress(Exception), torch.device("meta"), _quiet(transformers):
        _from_options(transformers, local, **_DEFAULTS.get(local, {}))
        return _takes_images(getattr(transformers, local))
    return False


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence configurations, which log the defaults they use."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


SOURCE = Source(_create, _names, "num_labels", "num_channels", is_buildable=_is_buildable)
