"""RMS norms in place of the layer norms of a pre-norm transformer, with the same output.

Rule: Jiang, Gu, Zhu and Pan, "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
NeurIPS 2023, arXiv:2305.14858. Where only layer norms read the trunk, its mean over the channels has no effect. If what
begins the trunk and what every branch adds have mean 0, so has the trunk, and a layer norm there is an RMS norm.

Ours: weights are centred when they are used, and not once. Checkpoints stay what they are, and training, too, goes as
without the rewrite; the paper's gain in speed is not claimed. The beginning of the trunk is centred as a whole, with
class tokens and embeddings of positions. The biases of the layer norms stay.

Pattern::

    x ─┬──────────────────────── + ─┬── … ── + ── layer norm
       └─ layer norm ── … ── linear ┘

Edit: a layer that subtracts the mean behind ``x``; behaviours of these linear layers and layer norms. All or nothing:
with any other reader or writer of the trunk (layer scale, an active dropout behind the linear) it is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from rewriter.authoring import (
    Branch,
    Change,
    Contract,
    Dataflow,
    Kind,
    Pass,
    Place,
    Reason,
    Refused,
    Trace,
    drop_rate,
    find_branches,
    is_stochastic_depth,
    name_of,
    register_layer,
)

Trunk: TypeAlias = list[Branch]


@register_layer("pre-rms-norm/centre")
class Centre(nn.Module):
    """Subtracts the mean over the channels; ``(N, L, C)``."""

    operation_kind = Kind.OTHER

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True)


@register_layer("pre-rms-norm/centred-linear")
class CentredLinear(nn.Module):
    """Behaviour of an ``nn.Linear`` that subtracts the mean over the channels of its output, from its weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias - self.bias.mean()
        return F.linear(input, self.weight - self.weight.mean(0), bias)


@register_layer("pre-rms-norm/norm")
class RootMeanSquareNorm(nn.Module):
    """Behaviour of an ``nn.LayerNorm`` that leaves its mean out."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        normalised = F.rms_norm(input, self.normalized_shape, self.weight, self.eps)
        return normalised if self.bias is None else normalised + self.bias


@dataclass(frozen=True)
class PreRMSNorm(Pass):
    name: ClassVar[str] = "pre-rms-norm"
    summary: ClassVar[str] = "RMS norms in place of the layer norms of a pre-norm transformer"
    paper: ClassVar[str] = "Jiang et al., Pre-RMSNorm and Pre-CRMSNorm Transformers, NeurIPS 2023, arXiv:2305.14858"
    contract: ClassVar[Contract] = Contract(rounding=True)

    def candidates(self, trace: Trace) -> Iterator[Place[tuple[Trunk, Trunk]]]:
        for trunk, in_eval in zip_longest(trunks(trace.flow, trace), trunks(trace.eval.dataflow, trace), fillvalue=[]):
            if trunk:
                yield Place(trace, trunk[0].fork, "trunk of a transformer", (trunk, in_eval))

    def decide(self, place: Place[tuple[Trunk, Trunk]]) -> Change:
        start = place.node
        if isinstance(place.trace.module_of(start), Centre):
            raise Refused(Reason.ALREADY_DONE, "its mean is 0")
        (norms, linears), others = (parts(trunk, place.trace) for trunk in place.subject)
        if [str(node.target) for node in (*norms, *linears)] != [str(node.target) for part in others for node in part]:
            raise Refused("pre-rms-norm/modes", "in evaluation mode others read it or add to it")
        place.interference.refuse_other_readers([start, *linears], norms, "have mean 0")
        place.edit.insert_after(start, Centre)
        for linear in linears:
            place.edit.behave(str(linear.target), CentredLinear)
        for norm in norms:
            place.edit.behave(str(norm.target), RootMeanSquareNorm)
        return Change(
            f"centre it and {len(linears)} layers that add to it, and leave the mean out of {len(norms)} layer norms",
            "only these norms read it, so its mean has no effect",
        )


def trunks(flow: Dataflow, trace: Trace) -> list[Trunk]:
    """The residual branches of sequences of tokens, each beginning where the one before ends."""
    found: dict[fx.Node, Trunk] = {}  # by the last join
    for branch in find_branches(flow, trace.model):
        if branch.form == "residual" and len(trace.shape(branch.join)) == 3:
            found[branch.join] = [*found.pop(branch.fork, []), branch]
    return list(found.values())


def parts(trunk: Trunk, trace: Trace) -> tuple[list[fx.Node], list[fx.Node]]:
    """The layer norms that read the trunk, and the linear layers that add to it; refuses anything else."""
    values = [branch.fork for branch in trunk[:1]] + [branch.join for branch in trunk]
    norms = [reader for value in values for reader in trunk[0].flow.users(value) if reader not in values]
    linears = [branch.end.weight for branch in trunk if branch.shortcut is branch.fork and branch.end.weight]
    for norm in norms:
        if not is_layer_norm(trace.module_of(norm), trace.shape(values[0])[-1]):
            raise Refused("pre-rms-norm/reader", f"{name_of(norm)} reads it, and is no layer norm")
    if len(linears) < len(trunk) or any(
        getattr(type(trace.module_of(linear)), "forward", None) is not nn.Linear.forward for linear in linears
    ):
        raise Refused("pre-rms-norm/writer", "not everything that is added to it comes from an nn.Linear")
    for branch in trunk:
        for node in branch.end.passed:
            if not keeps_zero_mean(node, branch):
                raise Refused("pre-rms-norm/writer", f"{name_of(node)} does not keep a mean of 0")
    return norms, linears


def keeps_zero_mean(node: fx.Node, branch: Branch) -> bool:
    """Whether an operation behind the last weight of a branch keeps a mean of 0 over the channels."""
    if node.meta["kind"] is Kind.DROPOUT:
        return drop_rate(node, branch.model) == 0
    factors = [factor for factor in node.all_input_nodes if factor not in branch.flow]
    one_number = all(factor.meta["shape"][-1:] in ((), (1,)) for factor in factors)
    return node.meta["kind"] is Kind.IDENTITY or (one_number and is_stochastic_depth(node, branch.flow))


def is_layer_norm(norm: nn.Module | None, width: int) -> bool:
    """Whether a module is an ``nn.LayerNorm`` of the last dimension; a forward of its own is tried."""
    if not isinstance(norm, nn.LayerNorm) or tuple(norm.normalized_shape) != (width,):
        return False
    if type(norm).forward is nn.LayerNorm.forward:
        return True
    drawn = {name: torch.arange(1.0, width + 1).sin() for name, _ in norm.named_parameters()}
    x = torch.arange(2.0 * 3 * width).cos().view(2, 3, width)
    expected = F.layer_norm(x, (width,), drawn.get("weight"), drawn.get("bias"), norm.eps)
    return torch.allclose(torch.func.functional_call(norm, drawn, (x,)), expected, atol=1e-5)
