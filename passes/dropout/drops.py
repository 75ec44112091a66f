"""The dropouts of a model: what they drop, at which rate, and in which mode."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rewriter.analysis.carrying import holds_attention_weights
from rewriter.analysis.dropouts import Mask, always_on, drop_rate, mask_of
from rewriter.analysis.naming import name_of, path_of
from rewriter.analysis.weights import has_weight
from rewriter.passes.dropout.layers import Bypassed
from rewriter.reasons import Reason, Refused
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name
from rewriter.tracing.trace import Trace

BECOMES_RANDOM = "become random in training"
NO_LONGER_DROPPED = "no longer be dropped"
KEPT_ON_ATTENTION = "it drops attention weights, not activations, and is kept"


class Drops:
    """The dropouts that ran in training mode, except those that an earlier rewrite has bypassed.

    Attributes:
        nodes: in execution order.
        always_on: those that also drop in evaluation mode.
    """

    def __init__(self, trace: Trace) -> None:
        self.model = trace.model
        self.flow = trace.train.dataflow
        self.always_on = always_on(self.flow, trace)
        self.nodes = [node for node in self.flow.nodes(Kind.DROPOUT) if not self.is_bypassed(node)]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the dropout's module; None for a function call."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def rate(self, node: fx.Node) -> float:
        """Return its drop rate during the trace."""
        return drop_rate(node, self.model)

    def rate_at(self, node: fx.Node, asked_for: float | None, option: str) -> str:
        """Describe the rate after the rewrite, and where it is read from; for one of 0, what ``option`` sets it."""
        if self.module(node) is None:
            return f"{self.rate(node):g} (as before, read in {facts(node)['owner'].method}())"
        rate = asked_for if asked_for is not None and self.switches_on(node, asked_for) else self.rate(node)
        sets_it = "" if rate else f"; dropout:{option}=0.2 sets it, in Python Dropout({option}=0.2)"
        return f"{rate:g} ({path_of(node)}.p{sets_it})"

    def switches_on(self, node: fx.Node, rate: float | None) -> bool:
        """Whether it is a module of rate 0 and a nonzero ``rate`` is asked for."""
        return bool(rate) and self.module(node) is not None and self.rate(node) == 0

    def is_bypassed(self, node: fx.Node) -> bool:
        """Whether an earlier rewrite has already bypassed this dropout."""
        return isinstance(self.module(node), Bypassed)

    def acts(self, node: fx.Node) -> bool:
        """Whether it drops anything at its present rate."""
        return self.rate(node) > 0

    def all_off(self, nodes: list[fx.Node], asked_for: float | None) -> bool:
        """Whether there are ``nodes``, and none of them acts or is to be switched on."""
        return bool(nodes) and not any(self.acts(node) or self.switches_on(node, asked_for) for node in nodes)

    def left(
        self, reason: Reason, detail: str, node: fx.Node, *, pattern: str | None = None, code: str = ""
    ) -> Refused:
        """Return that ``node`` is left where it is, why, and which fault that is."""
        path, inactive = path_of(node), not self.acts(node)
        return Refused(reason, detail, path=path, pattern=pattern, inactive=inactive, code=code, at=node)

    def batch_norm_between(self, first: fx.Node, second: fx.Node) -> fx.Node | None:
        """Return a norm with batch statistics on a path from ``first`` to ``second``."""
        between = self.flow.in_order(self.flow.region(first, second))
        return next((node for node in between if self._uses_the_batch(node)), None)

    def _uses_the_batch(self, node: fx.Node) -> bool:
        if facts(node)["kind"] is not Kind.NORM:
            return False
        if node.op == "call_module":
            return isinstance(self.model.get_submodule(str(node.target)), _BatchNorm)
        return function_name(node.target) == "batch_norm"  # type: ignore[arg-type]

    def on_attention(self, node: fx.Node) -> bool:
        """Whether it drops attention weights: a softmax, perhaps renormalised or mixed over heads."""
        return holds_attention_weights(node, self.flow)

    def on_predictions(self, node: fx.Node) -> bool:
        """Whether it drops the model's predictions: there is a weight before it and none after it."""
        reached = self.flow.reachable(node)
        return self.flow.output in reached and not any(has_weight(other, self.flow) for other in reached)

    def left_as_it_is(self, nodes: list[fx.Node]) -> Iterator[Refused]:
        """Yield those that ignore the training mode; a place that has one is left alone."""
        for node in nodes:
            if node in self.always_on:
                detail = f"{name_of(node)} drops in evaluation mode too; moved, it would change the output there"
                yield self.left(Reason.ALWAYS_ON, detail, node)
            elif not facts(node)["active"]:
                detail = f"{name_of(node)} is kept from dropping in training mode"
                yield self.left(Reason.FROZEN, detail, node)

    def kind_of(self, node: fx.Node) -> str:
        """Return, in brackets, what it drops if not single elements; otherwise an empty string."""
        mask = mask_of(node, self.model)
        return "" if mask is Mask.ELEMENTS else f" ({mask})"

    def refuse_other_kinds(self, kept: fx.Node, moved: bool, removed: list[fx.Node]) -> None:
        """Refuse to mix dropouts of different kinds: only element-wise ones are moved.

        Raises:
            Refused: ``kept`` is to be moved and is not element-wise, or one of the ``removed`` is of another kind.
        """
        mask = mask_of(kept, self.model)
        if moved and mask is not Mask.ELEMENTS:
            raise Refused(Reason.DROPOUT_KIND, f"{name_of(kept)} {mask}; only element-wise dropout is moved")
        for node in removed:
            other = mask_of(node, self.model)
            if other is not mask or mask is Mask.OWN:
                raise Refused(
                    Reason.DROPOUT_KIND,
                    f"{name_of(kept)} {mask} and {name_of(node)} {other}: one does not stand for the other",
                )

    def is_plain(self, node: fx.Node) -> bool:
        """Whether it is element-wise by its class or function, whatever its input."""
        module = self.module(node)
        name = getattr(node.target, "__name__", "")
        return isinstance(module, nn.Dropout) if module is not None else name.strip("_") == "dropout"
