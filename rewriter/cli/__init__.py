"""The commands, one file each."""

from rewriter.renamed import forward

__getattr__ = forward(__name__, "rewriter.cli.commands")
