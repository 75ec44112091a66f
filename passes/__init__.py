"""The guidelines, one folder or file each."""

from rewriter.passes.atrous_rates import AtrousRates as AtrousRates
from rewriter.passes.dropout import Dropout as Dropout
from rewriter.passes.group_count import GroupCount as GroupCount
from rewriter.passes.scale_equalizer import ScaleEqualizer as ScaleEqualizer
from rewriter.passes.stochastic_pooling import StochasticPooling as StochasticPooling
from rewriter.passes.weight_decay import WeightDecay as WeightDecay

__all__ = ["AtrousRates", "Dropout", "GroupCount", "ScaleEqualizer", "StochasticPooling", "WeightDecay"]

if __name__ != "rewriter.passes":  # `import passes` in a checkout gives the installed part of that name
    import sys
    from importlib import import_module

    sys.modules[__name__] = import_module("rewriter.passes")
