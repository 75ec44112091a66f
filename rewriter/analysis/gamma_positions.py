"""The positions in which a gamma can act, in words, and the four categories that weight decay distinguishes."""

from __future__ import annotations

import enum

from rewriter.renamed import forward_names


class Category(enum.StrEnum):
    """The four categories, in order of precedence: if the uses of a gamma disagree, the first one wins."""

    MAIN = "main"
    SHORTCUT = "shortcut"
    BRANCH_OTHER = "branch_other"
    BRANCH_LAST = "branch_last"


class GammaPosition(enum.StrEnum):
    """The position in words; each belongs to one category."""

    LAST = "last norm of a residual branch"
    INSIDE = "norm inside a residual branch"
    GATE = "norm of a gate or of attention weights"
    DENSE = "norm of a dense layer"
    TRANSITION = "norm between dense blocks"
    SHORTCUT = "norm on a shortcut"
    MAIN = "norm on the main path"
    CONSTANT = "norm of what no input reaches"
    UNSEEN = "norm that did not run"

    @property
    def category(self) -> Category:
        """The category that it belongs to."""
        return _CATEGORIES[self]


_CATEGORIES = {
    GammaPosition.LAST: Category.BRANCH_LAST,
    GammaPosition.INSIDE: Category.BRANCH_OTHER,
    GammaPosition.GATE: Category.BRANCH_OTHER,
    GammaPosition.DENSE: Category.BRANCH_OTHER,
    GammaPosition.TRANSITION: Category.BRANCH_OTHER,
    GammaPosition.SHORTCUT: Category.SHORTCUT,
    GammaPosition.MAIN: Category.MAIN,
    GammaPosition.CONSTANT: Category.MAIN,
    GammaPosition.UNSEEN: Category.MAIN,
}


__getattr__ = forward_names(__name__, {"Position": "GammaPosition"})
