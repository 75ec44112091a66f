"""Save a rewritten model to a directory or a checkpoint, and load it."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.storage.directory")
