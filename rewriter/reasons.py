"""Why a candidate is left alone."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx


class Reason(enum.StrEnum):
    """The reasons given by the passes of this package, each with a sentence of details.

    Attributes:
        meaning: what the reason means, in words.
    """

    meaning: str

    def __new__(cls, text: str, meaning: str = "") -> Reason:
        member = str.__new__(cls, text)
        member._value_, member.meaning = text, meaning
        return member

    ALREADY_DONE = "already-done", "the guideline holds there already"
    FILTERED = "filtered", "not selected by only= or skip="
    HELD_BACK = "held-back", "it would change the output of trained weights; see preserve="
    NOTHING_TO_MOVE = "nothing-to-move", "the right place is free, and there is no dropout to move there; give a rate"
    POST_ACTIVATION = (
        "post-activation",
        "the last norm of the branch comes after its last weight, and no place in the branch is right",
    )
    NO_NORM = "no-norm", "the branch has no norm before its last weight"
    NO_SINGLE_LAST_WEIGHT = "no-single-last-weight", "the branch ends in several weights, or in none"
    FUSED_ATTENTION = "fused-attention", "the last weight is computed inside one call of an attention"
    ATTENTION_DROPOUT = "attention-dropout", "the dropout acts on attention weights, which the guideline is not about"
    ON_TRUNK = "on-the-trunk", "the dropout stands on the trunk, after the sum, and no branch is surely its own"
    WEIGHT_BETWEEN = "weight-between", "a weight lies between the dropout and the pooling"
    NORM_BETWEEN = "norm-between", "a batch norm lies between the pooling and the dropout"
    ON_PREDICTIONS = "on-predictions", "the dropout acts on the predictions, behind the classifier"
    CLASS_TOKEN = "class-token", "the head reads a class token; nothing is pooled"
    MAX_POOLING = "max-pooling", "the head pools by the maximum"
    NO_GLOBAL_POOLING = "no-global-pooling", "no global average pooling leads to the output"
    OUTSIDE = "outside", "the pooling, or dropout, is on no way that the guideline is about"
    CLAIMED = "claimed", "another pass acts at this place"
    LOGITS = "logits", "no weight reads the fused map"
    NORM_FOLLOWS = "norm-follows", "a norm follows, which takes the scale out again"
    ADDITIVE = "additive", "the maps are summed, not concatenated; additive=True takes sums too"
    HEAD_DROPOUT = "head-dropout", "a dropout is active at this pooling; one kind of noise is enough"
    SQUEEZE = "squeeze", "the pooling makes a gate; squeeze=True takes it"
    SHORTCUT = "shortcut", "it lies on the shortcut of a residual block"
    ANTI_ALIASING = "anti-aliasing", "the pooling makes the stride of what stands before it"
    INSIDE_BRANCH = "inside-branch", "it lies inside a residual branch"
    FEW_ELEMENTS = "few-elements", "an output averages too few elements"
    OVERLAPPING_WINDOWS = "overlapping-windows", "the windows overlap, or reach over the border"
    IN_STEPS = "in-steps", "the average is taken over one dimension after the other"
    NO_WEIGHT_BEFORE = "no-weight-before", "no weight leads to the norm, so its rule says nothing"
    OUTSIDE_BAND = "outside-band", "no divisor of the channels lies in the band of the guideline"
    OWN_FORWARD = "own-forward", "the module has a forward of its own"
    SUMMED = "summed", "the results of the atrous convolutions are summed, not concatenated"
    KERNEL_SHAPE = "kernel-shape", "the rule is for square kernels of odd size with one dilation"
    OTHER_READERS = "other-readers", "somebody else reads the value that the edit would change"
    WRITTEN_IN_PLACE = "written-in-place", "a write in place would reach somebody else after the edit"
    PARALLEL_DROPOUTS = "parallel-dropouts", "several dropouts act on parallel paths, each with a mask of its own"
    DROPOUT_KIND = "dropout-kind", "the dropout is not element-wise, or two differ in kind"
    ALWAYS_ON = "always-on", "the dropout does not follow the mode of the model"
    SMALL_MAP = "small-map", "the map has no room for as many different dilations"
    FUNCTIONAL = "functional", "the hyper-parameter is an argument of a function, not an attribute of a module"
    FIXED_PADDING = "fixed-padding", "the padding does not follow the dilation"
    IN_PLACE = "in-place", "the operation works in place, and others read what it would write to"
    IN_A_LOOP = "in-a-loop", "the line runs several times in one forward, so an edit would act on all of it"
    SHARED_MODULE = "shared-module", "the module is called several times in one forward"
    HELPER_FUNCTION = "helper-function", "the operation is issued by a function, not by a method of a module"
    DIFFERENT_METHODS = "different-methods", "the two places are not in one method"
    NOT_MOVABLE = "not-movable", "the text of the call does not allow the change"
    NO_SOURCE = "no-source", "the code that runs has no source text that could be edited"
    NOT_IN_FORCE = "not-in-force", "the edit would not be what runs, or would change nothing"
    ONE_BRANCH = "one-branch", "another way through the code (an if) reaches the place and cannot be edited likewise"
    NO_GAMMA = "no-gamma", "the norm has no gamma that could be trained"
    FROZEN = "frozen", "the module or parameter is kept from training"


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
"""The guideline applies, but the code there cannot be edited."""

WARNED_OF = TECHNICAL | {Reason.ON_TRUNK, Reason.ON_PREDICTIONS, Reason.PARALLEL_DROPOUTS}
"""What stays against the guideline: users should learn of it without asking."""


_NAMESPACED = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")


def reason_of(text: str) -> Reason | str:
    """Look up a reason by its text: one of :class:`Reason`, or a pass's own, ``"pass-name/reason"``.

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
    """Raised to leave a place alone, with the reason.

    Args:
        reason: one of :class:`Reason`, or a pass's own, ``"pass-name/reason"``.
        detail: the details, in a sentence.
        path: path of the module that it is about, if that is not the module of the place.
        pattern: what was recognised there, if that is not the pattern of the place.
        inactive: whether it is about something without effect at its present rate.
        code: of the fault that stays, one of the pass's ``codes``; empty if nothing is wrong there.
        at: the operation that is at fault, if that is not the one of the place.
    """

    def __init__(
        self,
        reason: Reason | str,
        detail: str,
        *,
        path: str | None = None,
        pattern: str | None = None,
        inactive: bool = False,
        code: str = "",
        at: fx.Node | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason_of(reason)
        self.detail, self.path, self.pattern, self.inactive = detail, path, pattern, inactive
        self.code, self.at = code, at
