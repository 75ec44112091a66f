"""The guidelines, one folder or file each."""

from passes.dropout import Dropout as Dropout
from passes.group_count import GroupCount as GroupCount
from passes.stochastic_pooling import StochasticPooling as StochasticPooling

__all__ = ["Dropout", "GroupCount", "StochasticPooling"]
