"""Why a place that looks right is left alone."""

from __future__ import annotations

import enum
import re


class Reason(enum.StrEnum):
    """Enumerated reasons; a sentence with the particulars goes with each."""

    ALREADY_DONE = "already-done"
    FILTERED = "filtered"
    HELD_BACK = "held-back"
    NOTHING_TO_MOVE = "nothing-to-move"
    POST_ACTIVATION = "post-activation"
    NO_NORM = "no-norm"
    NO_SINGLE_LAST_WEIGHT = "no-single-last-weight"
    FUSED_ATTENTION = "fused-attention"
    ATTENTION_DROPOUT = "attention-dropout"
    ON_TRUNK = "on-the-trunk"
    WEIGHT_BETWEEN = "weight-between"
    NORM_BETWEEN = "norm-between"
    ON_PREDICTIONS = "on-predictions"
    CLASS_TOKEN = "class-token"
    MAX_POOLING = "max-pooling"
    NO_GLOBAL_POOLING = "no-global-pooling"
    OUTSIDE = "outside"
    CLAIMED = "claimed"
    LOGITS = "logits"
    NORM_FOLLOWS = "norm-follows"
    ADDITIVE = "additive"
    HEAD_DROPOUT = "head-dropout"
    SQUEEZE = "squeeze"
    SHORTCUT = "shortcut"
    ANTI_ALIASING = "anti-aliasing"
    INSIDE_BRANCH = "inside-branch"
    FEW_ELEMENTS = "few-elements"
    OVERLAPPING_WINDOWS = "overlapping-windows"
    IN_STEPS = "in-steps"
    NO_WEIGHT_BEFORE = "no-weight-before"
    OUTSIDE_BAND = "outside-band"
    OWN_FORWARD = "own-forward"
    SUMMED = "summed"
    KERNEL_SHAPE = "kernel-shape"
    OTHER_READERS = "other-readers"
    WRITTEN_IN_PLACE = "written-in-place"
    PARALLEL_DROPOUTS = "parallel-dropouts"
    DROPOUT_KIND = "dropout-kind"
    ALWAYS_ON = "always-on"
    SMALL_MAP = "small-map"
    FUNCTIONAL = "functional"
    FIXED_PADDING = "fixed-padding"
    IN_PLACE = "in-place"
    IN_A_LOOP = "in-a-loop"
    SHARED_MODULE = "shared-module"
    HELPER_FUNCTION = "helper-function"
    DIFFERENT_METHODS = "different-methods"
    NOT_MOVABLE = "not-movable"
    NO_SOURCE = "no-source"
    NOT_IN_FORCE = "not-in-force"
    ONE_BRANCH = "one-branch"
    NO_GAMMA = "no-gamma"
    FROZEN = "frozen"


TECHNICAL = frozenset(
    {
        Reason.IN_PLACE,
        Reason.WRITTEN_IN_PLACE,
        Reason.IN_A_LOOP,
        Reason.SHARED_MODULE,
        Reason.HELPER_FUNCTION,
        Reason.DIFFERENT_METHODS,
        Reason.NOT_MOVABLE,
        Reason.NO_SOURCE,
        Reason.NOT_IN_FORCE,
        Reason.ONE_BRANCH,
        Reason.FUNCTIONAL,
        Reason.FIXED_PADDING,
    }
)
"""The guideline applies, but the code there cannot be edited: what users should hear of without asking."""


_NAMESPACED = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")


def reason_of(text: str) -> Reason | str:
    """A reason by its text: one of :class:`Reason`, or a pass's own, ``"pass-name/reason"``.

    Raises:
        ValueError: it is neither.
    """
    if _NAMESPACED.fullmatch(text):
        return text
    try:
        return Reason(text)
    except ValueError:
        raise ValueError(f"{text!r} is no reason: expected one of rewriter.Reason, or 'pass-name/reason'") from None


class Refused(Exception):
    """A place that is left alone, with the reason.

    Args:
        reason: one of :class:`Reason`, or a pass's own, ``"pass-name/reason"``.
        detail: the particulars, in a sentence.
        path: of the module that it is about, if that is not the module of the place.
        pattern: what was recognised there, if that is not what the place is.
    """

    def __init__(
        self, reason: Reason | str, detail: str, *, path: str | None = None, pattern: str | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason_of(reason)
        self.detail, self.path, self.pattern = detail, path, pattern
