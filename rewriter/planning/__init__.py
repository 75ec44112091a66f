"""From a request to a plan, and from a plan to an edited and verified model."""

from rewriter.renamed import forward

__getattr__ = forward(
    __name__,
    "rewriter.planning.plan",
    "rewriter.planning.codec",
    "rewriter.planning.structure",
    "rewriter.planning.render",
)
