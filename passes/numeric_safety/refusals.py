"""What is said where a sigmoid, or a root, is found and stays as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import fx

from rewriter.authoring import Reason, Refused
from rewriter.passes.numeric_safety.replay import name_of_function

ARITHMETIC = frozenset(
    {"rsub", "sub", "subtract", "add", "radd", "neg", "negative", "mul", "rmul", "contiguous", "clone"}
)
_GUARDS = frozenset({"rsub", "sub", "subtract", "add", "radd", "clamp", "clamp_min", "clamp_max", "clip", "nan_to_num"})
_SCALES = {"mul": "a factor", "rmul": "a factor", "div": "a divisor", "truediv": "a divisor"}


def refuse_steps(steps: Sequence[fx.Node], code: str) -> None:
    """Refuse where what lies between is not arithmetic: a new shape or type, a selection, a detached gradient."""
    other = next((step for step in steps if name_of_function(step) not in ARITHMETIC), None)
    if other is not None:
        what = name_of_function(other)
        detail = (
            f"{what}() lies between the sigmoid and this; move the sigmoid behind it, or compute it from the logits"
        )
        raise Refused(Reason.NOT_MOVABLE, detail, code=code)


def refuse_what_guards_nothing(steps: Sequence[fx.Node]) -> None:
    """Refuse where nothing is added and no bound set, or where what is scaled is no sigmoid any more."""
    names = [name_of_function(step) for step in steps]
    scale = next((name for name in names if name in _SCALES), None)
    if scale is not None:
        how = "add it to" if scale in ("mul", "rmul") else "subtract it from"
        detail = (
            f"{_SCALES[scale]} ({scale}) lies between the sigmoid and this; take its logarithm by itself, and {how} "
            "torch.nn.functional.logsigmoid of the logits"
        )
        raise Refused(Reason.NOT_MOVABLE, detail, code="RW0701")
    if not _GUARDS.intersection(names):
        detail = f"{', '.join(names)} lies between the sigmoid and this; compute it from the logits"
        raise Refused(Reason.NOT_MOVABLE, detail, code="RW0701")


@contextlib.contextmanager
def coded(code: str, by_hand: str) -> Iterator[None]:
    """Give a refusal the code of the fault that stays, and say how to mend it by hand."""
    try:
        yield
    except Refused as refused:
        raise Refused(refused.reason, f"{refused.detail}. By hand: {by_hand}", code=code) from refused
