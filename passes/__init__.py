"""The guidelines, one folder or file each."""

from passes.dropout import Dropout as Dropout
from passes.stochastic_pooling import StochasticPooling as StochasticPooling
from passes.weight_decay import WeightDecay as WeightDecay

__all__ = ["Dropout", "StochasticPooling", "WeightDecay"]
