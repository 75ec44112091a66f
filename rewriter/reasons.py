"""Why a place that looks right is left alone."""

from __future__ import annotations

import enum


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


class Refused(Exception):
    """An edit that cannot be made, with the reason; passes turn it into a skipped site."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
