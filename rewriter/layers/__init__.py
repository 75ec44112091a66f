"""What passes put into models: the registry of layers, and layers with constants of the data."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.layers.registry")
