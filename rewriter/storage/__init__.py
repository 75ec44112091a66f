"""A rewritten model in a directory or a checkpoint, and back."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.storage.directory")
