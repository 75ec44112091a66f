"""The base class of passes: a guideline as a frozen dataclass whose fields are its options."""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from rewriter.guideline.lint import Lint, Location
from rewriter.reasons import WARNED_OF, Reason, Refused

if TYPE_CHECKING:  # pass metadata can be read without torch
    from torch import fx, nn

    from rewriter.edit.edits import Edit
    from rewriter.guideline.place import Place
    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class Contract:
    """What a pass promises to preserve; ``verify=True`` checks it on every rewritten model.

    Attributes:
        eval_output: whether the output in evaluation mode stays equal bit for bit, for any weights: gains that are all
            zero, such as the last gammas of a fresh ResNet, get nonzero values for the check. If False, the state dict
            of a rewritten model has an extra key, ``rewriter_plan``, which :func:`rewriter.original_state_dict` leaves
            out.
        state_dict: whether keys, shapes and values of everything else in the state dict stay equal.
        gradients: whether every parameter that received a gradient still does; those that the plan freezes do not.
        adds_buffers: whether the added modules have buffers. Checkpoints of the original then still load with
            ``strict=True``, and :func:`rewriter.original_state_dict` leaves the buffers out.
        adds_parameters: the same for parameters.
        freezes_parameters: whether parameters are kept from training that were trained; the plan names them. A loss
            that is given such a number may ignore it.
        rounding: whether sums may be taken in another order: with ``eval_output``, the output then stays equal up to
            rounding (:func:`rewriter.model.differences.rounding_of`), not bit for bit.
    """

    eval_output: bool = True
    state_dict: bool = True
    gradients: bool = True
    adds_buffers: bool = False
    adds_parameters: bool = False
    freezes_parameters: bool = False
    rounding: bool = False

    def __str__(self) -> str:
        promises = {
            f"eval output {'up to rounding' if self.rounding else 'bit for bit'}": self.eval_output,
            f"state dict{self._added}": self.state_dict,
            f"a gradient for every parameter{' that is not frozen' * self.freezes_parameters}": self.gradients,
        }
        return ", ".join(promise for promise, holds in promises.items() if holds)

    @property
    def _added(self) -> str:
        added = [name for name in ("buffers", "parameters") if getattr(self, f"adds_{name}")]
        return f" ({' and '.join(added)} are added)" if added else ""


@dataclass(frozen=True)
class Rate:
    """A hyper-parameter of a module that decides whether a site has an effect.

    Attributes:
        path: path of the module; ``name`` is the attribute, empty for a literal in the code.
        value: its value after the edits of the plan.
        off: the value at which the site has no effect.
    """

    path: str
    name: str
    value: float
    off: float = 0.0

    def now(self, model: nn.Module) -> float:
        """The current value in ``model``, or the planned one if the module or the attribute no longer exists."""
        from rewriter.model.wrappers import module_inside

        try:
            return float(operator.attrgetter(self.name)(module_inside(model, self.path))) if self.name else self.value
        except (AttributeError, TypeError, ValueError):
            return self.value


@dataclass(frozen=True)
class Site:
    """One place where a pass applies, and the edits that carry it out.

    Attributes:
        pass_name: name of the pass.
        path: path of the module that the change belongs to.
        pattern: what was recognised, such as ``"residual branch"``.
        action: what will be done, in words.
        reason: why.
        edits: the edits that do it.
        rate_at: where the user can change the rate afterwards, if there is one.
        rates: what decides whether the site has an effect; it has none while all of them are off.
        claim: what only one pass may do, such as ``"noise at the pooling of forward_head"``: the first pass to claim it
            keeps it, across rewrites too. Empty if nothing is claimed.
        code: of the fault that it is; empty for none. This and ``location`` are for :func:`rewriter.check`, and no part
            of a plan.
        location: where in the code.
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
    code: str = field(default="", compare=False, repr=False)
    location: Location | None = field(default=None, compare=False, repr=False)

    @property
    def inactive(self) -> bool:
        """Whether the site has no effect at the planned rates."""
        return bool(self.rates) and all(rate.value == rate.off for rate in self.rates)

    def inactive_in(self, model: nn.Module) -> bool:
        """Whether the site has no effect at the current rates of ``model``."""
        return bool(self.rates) and all(rate.now(model) == rate.off for rate in self.rates)

    def skipped(self, reason: Reason | str, detail: str) -> Skipped:
        """Return that this place is left alone, and why."""
        where = self.code, self.location
        return Skipped(self.pass_name, self.path, self.pattern, reason, detail, self.inactive, *where)


@dataclass(frozen=True)
class Skipped:
    """A candidate that is left alone, and why.

    Attributes:
        pass_name: name of the pass.
        path: path of the module that it is about.
        pattern: what was recognised, such as ``"head"``.
        reason: one of :class:`Reason`, or the pass's own, ``"pass-name/reason"``.
        detail: the reason in a sentence.
        inactive: whether it is about something without effect at its present rate.
        code, location: see :class:`Site`.
    """

    pass_name: str
    path: str
    pattern: str
    reason: Reason | str
    detail: str
    inactive: bool = False
    code: str = field(default="", compare=False, repr=False)
    location: Location | None = field(default=None, compare=False, repr=False)

    @property
    def warned_of(self) -> bool:
        """Whether it has an effect against the guideline, of which users should learn without asking."""
        return self.reason in WARNED_OF and not self.inactive


@dataclass(frozen=True)
class Advice:
    """What a pass advises for a place that it does not edit.

    Attributes:
        pass_name: name of the pass.
        path: path of the module that the advice is about.
        pattern: what was recognised, such as ``"last norm of a residual branch"``.
        advice: what is recommended, in words.
        reason: why.
        code, location: see :class:`Site`.
    """

    pass_name: str
    path: str
    pattern: str
    advice: str
    reason: str
    code: str = field(default="", compare=False, repr=False)
    location: Location | None = field(default=None, compare=False, repr=False)

    def skipped(self, reason: Reason | str, detail: str) -> Skipped:
        """Return that this place is left alone, and why."""
        where = self.code, self.location
        return Skipped(self.pass_name, self.path, self.pattern, reason, detail, False, *where)


@dataclass(frozen=True)
class Change:
    """A description of what is done at a place; the edits themselves are those of ``place.edit``.

    Attributes:
        action: what will be done.
        reason: why.
        setting: where the user can change the setting afterwards, if there is one.
        claim: what only one pass may do, see :class:`Site`.
        rates: what decides whether the change has an effect, see :class:`Site`.
        code: of the fault that is mended, one of the pass's ``codes``; empty if nothing is wrong there.
        at: the operation that is at fault, if that is not the one of the place.
    """

    action: str
    reason: str
    setting: str = ""
    claim: str = ""
    rates: tuple[Rate, ...] = ()
    code: str = ""
    at: fx.Node | None = None


@dataclass(frozen=True)
class Recommendation:
    """A recommendation for a place that is not edited, and the reason; ``code`` and ``at`` as in :class:`Change`."""

    advice: str
    reason: str
    code: str = ""
    at: fx.Node | None = None


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
        name: the name that users refer to it by.
        summary: a one-line description.
        paper: where the rule comes from.
        contract: what it promises to preserve.
        after: names of passes that must come before this one if both are requested.
        default: whether ``passes=None`` includes it, as it does the six passes of the first release.
        layers: modules that register the layers of this pass, if its own module does not.
        codes: the faults that it finds, for :func:`rewriter.check`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    contract: ClassVar[Contract] = Contract()
    after: ClassVar[tuple[str, ...]] = ()
    default: ClassVar[bool] = False
    layers: ClassVar[tuple[str, ...]] = ()
    codes: ClassVar[tuple[Lint, ...]] = ()

    def candidates(self, trace: Trace) -> Iterable[Place[Any]]:
        """Find the places in ``trace`` where the pass may apply; each is decided separately."""
        raise NotImplementedError(f"{type(self).__name__} defines neither candidates() nor find()")

    def decide(self, place: Place[Any]) -> Outcome | Iterable[Outcome] | None:
        """Decide what to do at ``place``: make edits with ``place.edit`` and describe them in a :class:`Change`.

        Returns:
            A :class:`Change`, a :class:`Recommendation`, or None if there is nothing to say; or several of these, at
            most one of which is a change.

        Raises:
            Refused: the place is left alone, for this reason.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither decide() nor find()")

    def find(self, trace: Trace) -> Iterable[Finding] | None:
        """Return all findings at once, for a pass without candidates and decisions; None otherwise."""
        return None

    def check_training(self, trace: Trace, training: Mapping[str, Any]) -> Iterable[Recommendation]:
        """Say what is wrong with a training configuration for the traced model; see :func:`rewriter.check`.

        Args:
            trace: of the model.
            training: the options of the training by name.
        """
        return ()

    @property
    def measures(self) -> bool:
        """Whether it decides by running the model: another build of torch may then break ties differently."""
        return False

    @property
    def needs_values(self) -> bool:
        """Whether it decides by the values of the model's weights; a pass applied by default never does."""
        return False

    def options(self) -> dict[str, Any]:
        """The options as plain data; functions by their qualified names."""
        return {name: _qualified_name(value) if callable(value) else value for name, value in asdict(self).items()}


def _qualified_name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
