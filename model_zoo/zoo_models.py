"""Models of :mod:`rewriter.zoo.zoo`: ``zoo:uperhead``, ``zoo:psphead-convnext_tiny``, ``zoo:preact_resnet18``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from rewriter.zoo.entry import CreationError, Entry, InputSize, MissingLibrary, Source, build, require, unknown
from rewriter.zoo.zoo.aspp import ASPPHead, SepASPPHead
from rewriter.zoo.zoo.blocks import DecodeHead
from rewriter.zoo.zoo.dropout_places import DropoutResNet, PostActivationBlock
from rewriter.zoo.zoo.fcn import FCNHead
from rewriter.zoo.zoo.preact_resnet import PreActResNet
from rewriter.zoo.zoo.psp import PSPHead
from rewriter.zoo.zoo.segmenter import Segmenter
from rewriter.zoo.zoo.uper import UPerHead

HEADS: dict[str, Callable[..., DecodeHead]] = {
    cls.__name__.lower(): cls for cls in (UPerHead, PSPHead, ASPPHead, SepASPPHead, FCNHead)
}

_OF_CIFAR = functools.partial(PreActResNet, depths=(18, 18, 18), widths=(16, 32, 64))

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": PreActResNet,
    "preact_resnet34": functools.partial(PreActResNet, depths=(3, 4, 6, 3)),
    "preact_resnet50": functools.partial(PreActResNet, depths=(3, 4, 6, 3), bottleneck=True),
    "preact_resnet101": functools.partial(PreActResNet, depths=(3, 4, 23, 3), bottleneck=True),
    "preact_resnet152": functools.partial(PreActResNet, depths=(3, 8, 36, 3), bottleneck=True),
    "preact_resnet110": _OF_CIFAR,
    "preact_resnet164": functools.partial(_OF_CIFAR, bottleneck=True),
    "dropout_preact_resnet": DropoutResNet,
    "dropout_resnet": functools.partial(DropoutResNet, block=PostActivationBlock),
}

_BACKBONE = "resnet18"

_DILATED_STRIDE = 8
"""Output stride under heads that read the last level, if the backbone supports dilated convolutions."""

_FINEST = 4
"""Stride of the finest level that a head reads; a backbone may have finer ones."""

_LEVELS = 4
"""Maximum number of levels that a head reads."""

_SIDE, _CIFAR_SIDE = 224, 32
"""Height and width in pixels if the backbone does not give them, and of CIFAR."""


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    if local in CLASSIFIERS:
        if pretrained:
            raise CreationError(f"{name} has no pretrained weights; leave pretrained away")
        model = build(name, CLASSIFIERS[local], {}, kwargs)
        return Entry(model, name, (int(kwargs.get("in_chans", 3)), _CIFAR_SIDE, _CIFAR_SIDE), dict(kwargs))
    head, _, backbone = local.partition("-")
    if head not in HEADS:
        raise unknown(name, head, [*HEADS, *CLASSIFIERS], prefix="zoo:")
    timm = require("timm")
    backbone = backbone or _BACKBONE
    if not timm.is_model(backbone.partition(".")[0]):
        raise unknown(name, backbone, timm.list_models(), prefix=f"zoo:{head}-")
    model = build(name, functools.partial(_segmenter, timm, HEADS[head], backbone), {"pretrained": pretrained}, kwargs)
    return Entry(model, name, _input_size(timm, backbone, kwargs), dict(kwargs))


def _segmenter(timm: Any, head: Callable[..., DecodeHead], name: str, pretrained: bool, **options: Any) -> Segmenter:
    """Build backbone and head; options named by the head's constructor are the head's, the others the backbone's."""
    of_head = {key: options.pop(key) for key in list(options) if key in inspect.signature(head).parameters}
    if not _fixed_size(timm, name):
        options.pop("img_size", None)  # the backbone runs on any size
    options |= {"pretrained": pretrained, "features_only": True}
    make: Callable[..., Any] = functools.partial(timm.create_model, name, **options)
    backbone = make() if "output_stride" in options or _reads_coarse_levels(head, of_head) else _dilated(make)
    strides = backbone.feature_info.reduction()
    levels = [level for level, stride in enumerate(strides) if stride >= _FINEST][-_LEVELS:]
    channels = [backbone.feature_info.channels()[level] for level in levels]
    channels_last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
    return Segmenter(backbone, head(channels, **of_head), levels, channels_last)


def _reads_coarse_levels(head: Callable[..., DecodeHead], options: dict[str, Any]) -> bool:
    """Whether the head fuses levels of all strides, so that none has to be kept fine by dilation."""
    return head is UPerHead or options.get("input_transform") == "resize_concat"


def _dilated(make: Callable[..., Any]) -> Any:
    try:
        return make(output_stride=_DILATED_STRIDE)
    except Exception:  # backbones refuse in many ways; any other error is raised again
        return make()


def _fixed_size(timm: Any, backbone: str) -> bool:
    configuration = timm.get_pretrained_cfg(backbone)
    return configuration is not None and bool(configuration.fixed_input_size)


def _input_size(timm: Any, backbone: str, kwargs: dict[str, Any]) -> InputSize:
    configuration = timm.get_pretrained_cfg(backbone)
    channels, *sides = configuration.input_size if configuration is not None else (3, _SIDE, _SIDE)
    given = kwargs.get("img_size", sides)
    height, width = (given, given) if isinstance(given, int) else given
    return int(kwargs.get("in_chans", channels)), int(height), int(width)


def _names() -> list[str]:
    try:
        require("timm")
    except MissingLibrary:
        return list(CLASSIFIERS)
    return [*HEADS, *CLASSIFIERS]


SOURCE = Source(_create, _names, "num_classes", "in_chans")
