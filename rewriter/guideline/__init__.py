"""Guidelines as passes: what they find, what they promise, and which are installed."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.guideline.base")
