"""What a guideline is: passes, what they find, what they promise; which passes are installed."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.guideline.base")
