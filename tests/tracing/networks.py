"""Models with what a trace has to follow, and the size of image that each is traced with."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from helpers import timm_model
from torch import nn

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "test_resnet": (lambda: timm_model("test_resnet", drop_rate=0.1), 64),
    "test_vit": (lambda: timm_model("test_vit", drop_rate=0.1, drop_path_rate=0.1), 160),
    "densenet121": (lambda: timm_model("densenet121"), 64),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), 64),
}
