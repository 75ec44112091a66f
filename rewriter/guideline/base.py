"""What a pass is: a guideline as a frozen dataclass whose fields are its options."""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from rewriter.reasons import Reason, Refused

if TYPE_CHECKING:  # what a pass is can be told without torch
    from torch import nn

    from rewriter.edit.edits import Edit
    from rewriter.guideline.place import Place
    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class Contract:
    """What a pass promises to leave as it is; ``verify=True`` checks it on every rewritten model.

    Attributes:
        eval_output: whether the output in evaluation mode stays equal bit for bit, whatever the weights are: gains that
            are all zero, as the last gammas of a fresh ResNet, have values while it is checked. If not, the state dict
            of a rewritten model has one key more, ``rewriter_plan``, which :func:`rewriter.original_state_dict` leaves
            out.
        state_dict: whether keys, shapes and values of all else in the state dict stay equal.
        gradients: whether every parameter that received a gradient still does.
        adds_buffers: whether modules it adds bring buffers. Then checkpoints of the original still load with
            ``strict=True``, and :func:`rewriter.original_state_dict` leaves them out.
        adds_parameters: likewise of parameters.
    """

    eval_output: bool = True
    state_dict: bool = True
    gradients: bool = True
    adds_buffers: bool = False
    adds_parameters: bool = False

    def __str__(self) -> str:
        promises = {
            "eval output bit for bit": self.eval_output,
            f"state dict{self._added}": self.state_dict,
            "a gradient for every parameter": self.gradients,
        }
        return ", ".join(promise for promise, holds in promises.items() if holds)

    @property
    def _added(self) -> str:
        added = [name for name in ("buffers", "parameters") if getattr(self, f"adds_{name}")]
        return f" ({' and '.join(added)} are added)" if added else ""


@dataclass(frozen=True)
class Rate:
    """What decides whether a site has an effect: a hyper-parameter of a module.

    Attributes:
        path: the module; ``name`` the attribute, empty for a number that is written in the code.
        value: what it is after the edits of the plan.
        off: the value at which nothing happens.
    """

    path: str
    name: str
    value: float
    off: float = 0.0

    def now(self, model: nn.Module) -> float:
        """What it is in ``model`` at this moment; as planned, where the module or the attribute is gone."""
        from rewriter.model.wrappers import module_inside

        try:
            return float(operator.attrgetter(self.name)(module_inside(model, self.path))) if self.name else self.value
        except (AttributeError, TypeError, ValueError):
            return self.value


@dataclass(frozen=True)
class Site:
    """One place where a pass applies, and the edits that carry it out.

    Attributes:
        pass_name: the pass.
        path: the module that the change belongs to.
        pattern: what was recognised, such as ``"residual branch"``.
        action: what will be done, in words.
        reason: why.
        edits: how.
        rate_at: where the user finds and changes the rate afterwards, if there is one.
        rates: what decides whether it has an effect; it has none while all of them are off.
        claim: what only one pass may do, such as ``"noise at the pooling of forward_head"``: the pass that comes first
            keeps it, also over several rewrites. Empty if nothing is claimed.
    """

    pass_name: str
    path: str
    pattern: str
    action: str
    reason: str
    edits: tuple[Edit, ...]
    rate_at: str = ""
    claim: str = ""
    rates: tuple[Rate, ...] = ()

    @property
    def inactive(self) -> bool:
        """Whether it has no effect with the rates that it was planned with."""
        return bool(self.rates) and all(rate.value == rate.off for rate in self.rates)

    def inactive_in(self, model: nn.Module) -> bool:
        """Whether it has no effect with the rates that ``model`` has at this moment."""
        return bool(self.rates) and all(rate.now(model) == rate.off for rate in self.rates)


@dataclass(frozen=True)
class Skipped:
    """A place that looks right and is left alone, and why."""

    pass_name: str
    path: str
    pattern: str
    reason: Reason | str
    detail: str


@dataclass(frozen=True)
class Advice:
    """What a pass says about a place without editing the model.

    Attributes:
        pass_name: the pass.
        path: the module it is about.
        pattern: what was recognised, such as ``"last norm of a residual branch"``.
        advice: what is recommended, in words.
        reason: why.
    """

    pass_name: str
    path: str
    pattern: str
    advice: str
    reason: str


@dataclass(frozen=True)
class Change:
    """What is done at a place, in words; the edits are those of ``place.edit``.

    Attributes:
        action: what will be done.
        reason: why.
        setting: where the user finds and changes what can be set afterwards, if there is such a thing.
        claim: what only one pass may do, see :class:`Site`.
        rates: what decides whether it has an effect, see :class:`Site`.
    """

    action: str
    reason: str
    setting: str = ""
    claim: str = ""
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True)
class Recommendation:
    """What is recommended at a place, without an edit, and why."""

    advice: str
    reason: str


Outcome: TypeAlias = Change | Recommendation | Refused
"""What a pass decides about a place."""

Finding: TypeAlias = Site | Skipped | Advice
"""What a pass finds in a trace."""


PassRequest: TypeAlias = "str | Pass | type[Pass] | Mapping[str, Mapping[str, Any]]"
"""A pass by its name, as an instance, as a class that needs no options, or as ``{name: {option: value}}``."""

Passes: TypeAlias = "PassRequest | Sequence[PassRequest]"
"""One pass or several."""


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A guideline. Subclass as a frozen dataclass; every field is an option of the same name on the command line.

    Attributes:
        name: how users call it.
        summary: one line.
        paper: where the rule comes from.
        contract: what it promises to preserve.
        after: names of passes that must come before this one, when both are asked for.
        default: whether it is among the passes of ``passes=None``; the six of the first release are.
        layers: modules that register the layers of this pass, where its own module does not.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    contract: ClassVar[Contract] = Contract()
    after: ClassVar[tuple[str, ...]] = ()
    default: ClassVar[bool] = False
    layers: ClassVar[tuple[str, ...]] = ()

    def candidates(self, trace: Trace) -> Iterable[Place[Any]]:
        """The places in ``trace`` that look right; each is decided by itself."""
        raise NotImplementedError(f"{type(self).__name__} defines neither candidates() nor find()")

    def decide(self, place: Place[Any]) -> Outcome | Iterable[Outcome] | None:
        """What is done at ``place``: edits made with ``place.edit`` and a :class:`Change` that describes them.

        Returns:
            A :class:`Change`, a :class:`Recommendation`, or None where there is nothing to say; or several of these, of
            which one is a change at most.

        Raises:
            Refused: the place is left alone, for this reason.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither decide() nor find()")

    def find(self, trace: Trace) -> Iterable[Finding] | None:
        """All findings at once, for a pass that is not written as candidates and decisions; else None."""
        return None

    @property
    def measures(self) -> bool:
        """Whether it decides by running the model: with another build of torch a choice between equals may differ."""
        return False

    @property
    def needs_values(self) -> bool:
        """Whether it decides by the values of the model's weights; a pass that is applied unasked never does."""
        return False

    def options(self) -> dict[str, Any]:
        """The options as plain data; a function by its qualified name."""
        return {name: _qualified_name(value) if callable(value) else value for name, value in asdict(self).items()}


def _qualified_name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
