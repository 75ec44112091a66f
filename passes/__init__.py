"""The guidelines, one folder or file each."""

from passes.atrous_rates import AtrousRates as AtrousRates
from passes.dropout import Dropout as Dropout
from passes.group_count import GroupCount as GroupCount
from passes.scale_equalizer import ScaleEqualizer as ScaleEqualizer
from passes.stochastic_pooling import StochasticPooling as StochasticPooling
from passes.weight_decay import WeightDecay as WeightDecay

__all__ = ["AtrousRates", "Dropout", "GroupCount", "ScaleEqualizer", "StochasticPooling", "WeightDecay"]
