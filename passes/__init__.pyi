from .atrous_rates import AtrousRates as AtrousRates
from .dropout import Dropout as Dropout
from .gaussian_attention_bias import GaussianAttentionBias as GaussianAttentionBias
from .group_count import GroupCount as GroupCount
from .kernel_padding import KernelPadding as KernelPadding
from .numeric_safety import NumericSafety as NumericSafety
from .patch_norm import PatchNorm as PatchNorm
from .position_variance import PositionVariance as PositionVariance
from .scale_equalizer import ScaleEqualizer as ScaleEqualizer
from .stochastic_pooling import StochasticPooling as StochasticPooling
from .temperature_free import TemperatureFree as TemperatureFree
from .timestep_embedding import TimestepEmbedding as TimestepEmbedding
from .weight_decay import WeightDecay as WeightDecay

__all__ = [
    "AtrousRates",
    "Dropout",
    "GaussianAttentionBias",
    "GroupCount",
    "KernelPadding",
    "NumericSafety",
    "PatchNorm",
    "PositionVariance",
    "ScaleEqualizer",
    "StochasticPooling",
    "TemperatureFree",
    "TimestepEmbedding",
    "WeightDecay",
]
