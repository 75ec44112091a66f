"""Golden plans of the dropout pass: what it finds in well-known architectures, as text.

``REWRITER_UPDATE_GOLDEN=1 pytest tests/test_dropout_plans.py`` writes them anew; read the difference before committing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import rewriter
from passes import Dropout

GOLDEN = Path(__file__).parent / "golden" / "dropout"
DROPS = {"drop_rate": 0.2, "drop_path_rate": 0.1}

MODELS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "resnet50": ("resnet50", DROPS, None),
    "resnetv2_50": ("resnetv2_50", DROPS, None),
    "resnetv2_50-inserted": ("resnetv2_50", {}, 0.1),
    "densenet121": ("densenet121", {"drop_rate": 0.2, "proj_drop_rate": 0.1}, None),
    "efficientnet_b0": ("efficientnet_b0", DROPS, None),
    "mobilenetv3_large_100": ("mobilenetv3_large_100", DROPS, None),
    "convnext_tiny": ("convnext_tiny", DROPS, None),
    "vit_small-token": ("vit_small_patch16_224", {**DROPS, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}, None),
    "vit_small-avg": ("vit_small_patch16_224", {**DROPS, "global_pool": "avg"}, None),
    "swin_tiny": ("swin_tiny_patch4_window7_224", {**DROPS, "proj_drop_rate": 0.1}, None),
    "regnety_008": ("regnety_008", DROPS, None),
    "wide_resnet50_2": ("wide_resnet50_2", DROPS, None),
    "torchvision-resnet18": ("torchvision:resnet18", {}, 0.1),
    "torchvision-densenet121": ("torchvision:densenet121", {"drop_rate": 0.2}, None),
    "torchvision-mobilenet_v2": ("torchvision:mobilenet_v2", {}, None),
}


def create(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        if name.startswith("torchvision:"):
            return torchvision.models.get_model(name.removeprefix("torchvision:"), **kwargs)
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("case", MODELS)
def test_plan_reads_as_written_down(case: str) -> None:
    name, kwargs, p = MODELS[case]
    model = create(name, **kwargs)
    plan = rewriter.plan(model, [Dropout(p=p)], input_size=224)
    text = f"{plan}\n\n{plan.diff(model)}".rstrip() + "\n"
    golden = GOLDEN / f"{case}.txt"
    if os.environ.get("REWRITER_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
