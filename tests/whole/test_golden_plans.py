"""Golden plans: what each pass finds in well-known architectures, as text.

``REWRITER_UPDATE_GOLDEN=1 pytest tests/whole/test_golden_plans.py tests/whole/test_foreign_models.py`` writes them
anew; read the difference before committing.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_golden, slow_but

import rewriter
from rewriter import zoo
from rewriter.passes import (
    AtrousRates,
    Dropout,
    GaussianAttentionBias,
    GroupCount,
    KernelPadding,
    PatchNorm,
    PositionVariance,
    ScaleEqualizer,
    StochasticPooling,
    WeightDecay,
)

DROPS = {"drop_rate": 0.2, "drop_path_rate": 0.1}


class Case(NamedTuple):
    """A model and the passes that are planned for it."""

    name: str
    options: Any = MappingProxyType({})
    passes: tuple[Any, ...] = (Dropout(),)


SAMPLED = (StochasticPooling(),)
ATROUS = (AtrousRates(),)
GROUPED = (GroupCount(),)
DECAYED = (WeightDecay(),)
BIASED = (GaussianAttentionBias(),)

CASES = {
    "dropout/resnet50": Case("resnet50", DROPS),
    "dropout/resnetv2_50": Case("resnetv2_50", DROPS),
    "dropout/resnetv2_50-inserted": Case("resnetv2_50", {}, (Dropout(p=0.1),)),
    "dropout/densenet121": Case("densenet121", {"drop_rate": 0.2, "proj_drop_rate": 0.1}),
    "dropout/efficientnet_b0": Case("efficientnet_b0", DROPS),
    "dropout/mobilenetv3_large_100": Case("mobilenetv3_large_100", DROPS),
    "dropout/convnext_tiny": Case("convnext_tiny", DROPS),
    "dropout/vit_small-token": Case("vit_small_patch16_224", {**DROPS, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}),
    "dropout/vit_small-avg": Case("vit_small_patch16_224", {**DROPS, "global_pool": "avg"}),
    "dropout/swin_tiny": Case("swin_tiny_patch4_window7_224", {**DROPS, "proj_drop_rate": 0.1}),
    "dropout/regnety_008": Case("regnety_008", DROPS),
    "dropout/wide_resnet50_2": Case("wide_resnet50_2", DROPS),
    "dropout/torchvision-resnet18": Case("torchvision:resnet18", {}, (Dropout(p=0.1),)),
    "dropout/torchvision-densenet121": Case("torchvision:densenet121", {"drop_rate": 0.2}),
    "dropout/torchvision-mobilenet_v2": Case("torchvision:mobilenet_v2"),
    "group-count/resnet50_gn": Case("resnet50_gn", {}, GROUPED),
    "group-count/resnetv2_50d_gn": Case("resnetv2_50d_gn", {}, GROUPED),
    "group-count/resnetv2_50d_gn-measured": Case("resnetv2_50d_gn", {}, (GroupCount(rule="measured-isometry"),)),
    "group-count/resnetv2_50x1_bit-16": Case("resnetv2_50x1_bit", {}, (GroupCount(rule="channels-per-group"),)),
    "stochastic-pooling/resnet50": Case("resnet50", {}, SAMPLED),
    "stochastic-pooling/resnet50d": Case("resnet50d", {}, SAMPLED),
    "stochastic-pooling/resnetaa50": Case("resnetaa50", {}, SAMPLED),
    "stochastic-pooling/resnet50-head-dropout": Case("resnet50", DROPS, SAMPLED),
    "stochastic-pooling/resnetv2_50-both": Case("resnetv2_50", {}, (Dropout(p=0.1), *SAMPLED)),
    "stochastic-pooling/seresnet50": Case("seresnet50", {}, SAMPLED),
    "stochastic-pooling/seresnet50-squeeze": Case("seresnet50", {}, (StochasticPooling(squeeze=True),)),
    "stochastic-pooling/densenet121": Case("densenet121", {}, SAMPLED),
    "stochastic-pooling/convnext_tiny": Case("convnext_tiny", {}, SAMPLED),
    "stochastic-pooling/efficientnet_b0": Case("efficientnet_b0", {}, SAMPLED),
    "stochastic-pooling/mobilenetv3_large_100": Case("mobilenetv3_large_100", {}, SAMPLED),
    "stochastic-pooling/poolformer_s12": Case("poolformer_s12", {}, SAMPLED),
    "stochastic-pooling/inception_v3": Case("inception_v3", {}, SAMPLED),
    "stochastic-pooling/swin_tiny": Case("swin_tiny_patch4_window7_224", {}, SAMPLED),
    "stochastic-pooling/vit_small-token": Case("vit_small_patch16_224", {}, SAMPLED),
    "stochastic-pooling/vit_small-avg": Case("vit_small_patch16_224", {"global_pool": "avg"}, SAMPLED),
    "stochastic-pooling/torchvision-mobilenet_v2": Case(
        "torchvision:mobilenet_v2", {}, (StochasticPooling(scale="none"),)
    ),
    "stochastic-pooling/torchvision-densenet121": Case("torchvision:densenet121", {}, SAMPLED),
    "stochastic-pooling/torchvision-shufflenet_v2_x1_0": Case("torchvision:shufflenet_v2_x1_0", {}, SAMPLED),
    "stochastic-pooling/torchvision-vgg11": Case("torchvision:vgg11", {}, SAMPLED),
    "stochastic-pooling/torchvision-deeplabv3_resnet50": Case("torchvision:deeplabv3_resnet50", {}, SAMPLED),
    "stochastic-pooling/torchvision-lraspp_mobilenet_v3_large": Case(
        "torchvision:lraspp_mobilenet_v3_large", {}, SAMPLED
    ),
    "stochastic-pooling/smp-pspnet": Case("smp:pspnet-resnet18", {}, SAMPLED),
    "stochastic-pooling/smp-upernet": Case("smp:upernet-resnet18", {}, SAMPLED),
    "scale-equalizer/smp-deeplabv3plus": Case("smp:deeplabv3plus-resnet18", {}, (ScaleEqualizer(),)),
    "scale-equalizer/smp-upernet": Case("smp:upernet-resnet18", {}, (ScaleEqualizer(),)),
    "scale-equalizer/smp-upernet-additive": Case("smp:upernet-resnet18", {}, (ScaleEqualizer(additive=True),)),
    "scale-equalizer/smp-segformer": Case("smp:segformer-resnet18", {}, (ScaleEqualizer(),)),
    "scale-equalizer/smp-fpn-additive": Case("smp:fpn-resnet18", {}, (ScaleEqualizer(additive=True),)),
    "scale-equalizer/torchvision-deeplabv3_resnet50": Case("torchvision:deeplabv3_resnet50", {}, (ScaleEqualizer(),)),
    "atrous-rates/torchvision-deeplabv3_resnet50": Case("torchvision:deeplabv3_resnet50", {}, ATROUS),
    "atrous-rates/torchvision-deeplabv3_mobilenet_v3_large": Case(
        "torchvision:deeplabv3_mobilenet_v3_large", {}, ATROUS
    ),
    "atrous-rates/torchvision-fcn_resnet50": Case("torchvision:fcn_resnet50", {}, ATROUS),
    "atrous-rates/smp-deeplabv3": Case("smp:deeplabv3-resnet18", {}, ATROUS),
    "atrous-rates/smp-deeplabv3plus": Case("smp:deeplabv3plus-resnet18", {}, ATROUS),
    "gaussian-attention-bias/vit_relpos_base-cls": Case("vit_relpos_base_patch16_cls_224", {"depth": 2}, BIASED),
    "gaussian-attention-bias/swin_tiny": Case("swin_tiny_patch4_window7_224", {}, BIASED),
    "gaussian-attention-bias/torchvision-swin_t": Case("torchvision:swin_t", {}, BIASED),
    "gaussian-attention-bias/vit_tiny-plain": Case(
        "vit_tiny_patch16_224", {"depth": 2}, (GaussianAttentionBias(plain=True),)
    ),
    "kernel-padding/resnet50": Case("resnet50", {}, (KernelPadding(),)),
    "kernel-padding/torchvision-resnet18-pools": Case("torchvision:resnet18", {}, (KernelPadding(pools=True),)),
    "kernel-padding/tf_efficientnet_lite0": Case("tf_efficientnet_lite0", {}, (KernelPadding(),)),
    "weight-decay/resnet50": Case("resnet50", {}, DECAYED),
    "weight-decay/resnetv2_50": Case("resnetv2_50", {}, DECAYED),
    "weight-decay/densenet121": Case("densenet121", {}, DECAYED),
    "patch-norm/vit_small": Case("vit_small_patch16_224", {}, (PatchNorm(),)),
    "patch-norm/deit_small_distilled-patches": Case(
        "deit_small_distilled_patch16_224", {}, (PatchNorm(where="patches"),)
    ),
    "patch-norm/torchvision-vit_b_16": Case("torchvision:vit_b_16", {}, (PatchNorm(),)),
    "patch-norm/vit_tiny_r_s16": Case("vit_tiny_r_s16_p8_224", {}, (PatchNorm(),)),
    "position-variance/vit_small_384-dynamic": Case(
        "vit_small_patch16_384", {"dynamic_img_size": True}, (PositionVariance(),)
    ),
    "weight-decay/swin_tiny-main": Case("swin_tiny_patch4_window7_224", {}, (WeightDecay({"main": True}),)),
}
SLOW = {"group-count/resnet50_gn", "group-count/resnetv2_50d_gn", "group-count/resnetv2_50x1_bit-16"}


@pytest.mark.parametrize("case", slow_but({*CASES} - SLOW, CASES))
def test_plan_reads_as_written_down(case: str) -> None:
    name, options, passes = CASES[case]
    with torch.device("meta"):
        model = zoo.create(name, **options).model
    plan = rewriter.plan(model, passes, input_size=224)
    assert_golden(case, f"{plan}\n\n{plan.diff(model)}")
