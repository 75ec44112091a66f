"""Models of diffusers: ``diffusers:UNet2DModel`` and every other class whose configuration determines its inputs.

A class is built from its default configuration with random weights; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from rewriter.zoo.entry import CreationError, Entry, Source, build, require, unknown

_BATCH = 2
"""Batch norm in training needs more than one value per channel."""

_SIDE, _CLIP_SIDE, _FRAMES = 32, 64, 9
"""Size of images and of clips, and length of clips: the smallest that networks of usual depth run on."""

_TOKENS = 4
"""Length of texts."""

_LATENT_SCALE = 8
"""Pixels along one side of a latent."""


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    library = _library()
    if local not in _names():
        raise unknown(name, local, _names(), prefix="diffusers:")
    if pretrained:
        raise CreationError(f"{name} is a class without weights; leave pretrained away")
    cls = getattr(library, local)
    accepted = _options(cls)
    for option in kwargs:
        if option not in accepted:
            raise CreationError(f"{name} has no option {option!r}; its options: {', '.join(accepted)}")
    model = build(name, cls, {}, kwargs)
    with torch.device("cpu"):  # models are also created under the meta device
        return Entry(model, name, None, dict(kwargs), _example_inputs(cls, model.config, _rank(model)))  # type: ignore[arg-type]


def _options(cls: Any) -> dict[str, Any]:
    """Return the constructor's options with their defaults, which are the configuration."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _parameters_of_forward(cls: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(cls.forward).parameters.values())[1:]


def _can_be_told(cls: Any) -> bool:
    """Whether the default configuration is complete, and determines all required arguments of ``forward``."""
    config = _options(cls)
    needed = {p.name for p in _parameters_of_forward(cls) if p.default is p.empty}
    whole = inspect.Parameter.empty not in config.values()
    return whole and bool(needed) and needed <= _example_inputs(cls, config).keys()


def _example_inputs(cls: Any, config: Mapping[str, Any], rank: int = 2) -> dict[str, torch.Tensor]:
    """Return the keyword arguments of ``forward`` that the configuration determines.

    Args:
        cls: the class.
        config: its configuration.
        rank: 2 for a model of images, 3 for one of clips.
    """
    made = {p.name: _ARGUMENTS[p.name](config, rank) for p in _parameters_of_forward(cls) if p.name in _ARGUMENTS}
    return {name: value for name, value in made.items() if value is not None}


def _rank(model: nn.Module) -> int:
    """Return the number of input dimensions besides batch and channels: the maximum over the model's convolutions."""
    return max((len(module.kernel_size) for module in model.modules() if isinstance(module, _ConvNd)), default=2)


def _sample(config: Mapping[str, Any], rank: int) -> torch.Tensor | None:
    """Images ``(N, C, H, W)``, clips ``(N, C, T, H, W)`` or signals ``(N, C, T)``, as pixels or latents."""
    channels = _number(config, "in_channels")
    sizes = {1: (_SIDE,), 2: (_SIDE, _SIDE), 3: (_FRAMES, _CLIP_SIDE, _CLIP_SIDE)}
    return None if channels is None else _noise(channels, *sizes[rank])


def _latent(config: Mapping[str, Any], rank: int) -> torch.Tensor | None:
    """Images ``(N, C, H, W)`` for transformers that split them into patches, with positions for a single size."""
    channels, side, patch = (_number(config, option) for option in ("in_channels", "sample_size", "patch_size"))
    return None if channels is None or side is None or patch is None else _noise(channels, side, side)


def _timestep(config: Mapping[str, Any], rank: int) -> torch.Tensor:
    """``(N,)``."""
    return torch.ones(_BATCH, dtype=torch.int64)


def _text(config: Mapping[str, Any], rank: int) -> torch.Tensor | None:
    """``(N, tokens, channels)``."""
    names = ("encoder_hid_dim", "caption_channels", "joint_attention_dim", "cross_attention_dim")
    channels = next((width for name in names if (width := _number(config, name)) is not None), None)
    return None if channels is None else _noise(_TOKENS, channels)


def _pooled_text(config: Mapping[str, Any], rank: int) -> torch.Tensor | None:
    """``(N, channels)``."""
    channels = _number(config, "pooled_projection_dim")
    return None if channels is None else _noise(channels)


def _class_labels(config: Mapping[str, Any], rank: int) -> torch.Tensor | None:
    """``(N,)``."""
    return None if _number(config, "num_embeds_ada_norm") is None else torch.zeros(_BATCH, dtype=torch.int64)


def _condition(config: Mapping[str, Any], rank: int) -> torch.Tensor | None:
    """Images ``(N, C, H, W)`` in pixels accompanying latents."""
    channels = _number(config, "conditioning_channels")
    return None if channels is None else _noise(channels, _LATENT_SCALE * _SIDE, _LATENT_SCALE * _SIDE)


def _number(config: Mapping[str, Any], option: str) -> int | None:
    value = config.get(option)
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) else None


def _noise(*shape: int) -> torch.Tensor:
    return torch.rand(_BATCH, *shape, generator=torch.Generator().manual_seed(0))


_ARGUMENTS: dict[str, Callable[[Mapping[str, Any], int], torch.Tensor | None]] = {
    "sample": _sample,
    "hidden_states": _latent,
    "timestep": _timestep,
    "encoder_hidden_states": _text,
    "pooled_projections": _pooled_text,
    "class_labels": _class_labels,
    "controlnet_cond": _condition,
}
"""Arguments of ``forward`` by their names in diffusers; None if the configuration does not determine one."""


def _library() -> Any:
    return require("diffusers")


def _names() -> list[str]:
    return list(_told(_library()))


@functools.cache
def _told(library: Any) -> tuple[str, ...]:
    base = library.ModelMixin
    found = (getattr(library, name, None) for name in library._import_structure["models"])
    classes = [cls for cls in found if inspect.isclass(cls) and issubclass(cls, base) and cls is not base]
    return tuple(sorted(cls.__name__ for cls in classes if _can_be_told(cls)))


@functools.cache
def _is_buildable(local: str) -> bool:
    """Whether the default configuration builds a model that runs, on the meta device."""
    with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad():
        entry = _create(f"diffusers:{local}", local, False, {})
        assert isinstance(entry.example_inputs, dict)
        entry.model(**{name: value.to("meta") for name, value in entry.example_inputs.items()})
        return True
    return False


SOURCE = Source(_create, _names, is_buildable=_is_buildable)
