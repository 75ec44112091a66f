"""The image size that a model was made for, according to its own configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_OF_TIMM = ("pretrained_cfg", "default_cfg")


@dataclass(frozen=True)
class ConfiguredSize:
    """What a configuration says about a model's images.

    Attributes:
        sides: height and width, or one number for both.
        attribute: the model's attribute that says so: ``"model.pretrained_cfg"``.
    """

    sides: int | tuple[Any, ...]
    attribute: str

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width as two numbers."""
        height, width = (self.sides, self.sides) if isinstance(self.sides, int) else self.sides
        return int(height), int(width)


def configured_size(model: Any) -> ConfiguredSize | None:
    """The image size that ``model`` was made for; None if its configuration does not say.

    Reads ``pretrained_cfg`` and ``default_cfg`` of timm (preferring the size that the patch embedding was made for),
    ``config.image_size`` of transformers (of the model or of its vision part), and ``image_size``.
    """
    for name, configuration in _of_timm(model):
        built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
        sides = built_for if isinstance(built_for, (tuple, list)) else configuration["input_size"][-2:]
        return ConfiguredSize(tuple(sides), f"model.{name}")
    for attribute, holder in (("model.config", _config_with(model, "image_size")), ("model.image_size", model)):
        found = getattr(holder, "image_size", None)
        if found and isinstance(found, (int, tuple, list)):
            return ConfiguredSize(found if isinstance(found, int) else tuple(found), attribute)
    return None


def configured_channels(model: Any) -> list[int]:
    """The numbers of channels that the configuration of ``model`` names, the most likely first."""
    channels = [configuration["input_size"][0] for _, configuration in _of_timm(model)]
    of_config = getattr(_config_with(model, "num_channels"), "num_channels", None)
    return [*channels, of_config] if isinstance(of_config, int) else channels


def _of_timm(model: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in _OF_TIMM:
        configuration = getattr(model, name, None)
        if isinstance(configuration, Mapping) and configuration.get("input_size") is not None:
            yield name, configuration


def _config_with(model: Any, name: str) -> Any:
    """The transformers configuration, or the first of its parts, that has ``name``; None if none does."""
    config = getattr(model, "config", None)
    parts = (config, *getattr(config, "__dict__", {}).values())
    return next((part for part in parts if getattr(part, name, None) is not None), None)
