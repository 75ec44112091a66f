"""Layers that passes add to models: the registry, and layers that are calibrated on data."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.layers.registry")
