"""Fold the constants of calibrated layers into the weights that read their outputs.

Each map of a concatenation has its own input channels in the following weight, so ``(x_i - mean_i) * scale_i`` can be
folded into it: ``W_i * scale_i`` takes the scale, and the bias takes ``- sum W_i * scale_i * mean_i``. If the weight is
a convolution with zero padding, a zero beside a normalised map corresponds to ``mean_i`` beside the original map: then
each map is padded with its mean before the concatenation, and the convolution does not pad.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.argument_checks import checked_flag
from rewriter.edit.edits import EditMethod
from rewriter.errors import FoldError, InputError
from rewriter.layers.registry import CalibratedLayer, calibrated_layers
from rewriter.model.adapters import refuse_adapters
from rewriter.model.contents import tensors_held
from rewriter.model.copying import Model, copy_model
from rewriter.model.differences import ROUNDING, ROUNDING_OF_16_BITS, difference
from rewriter.model.random_state import random_state_kept
from rewriter.model.refusal import check_model
from rewriter.model.state import state_kept
from rewriter.planning.record import records_of, set_records
from rewriter.planning.remembered_inputs import inputs_of_rewrite
from rewriter.planning.report import needs_no_calibration
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.inputs import Inputs, candidate_inputs
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import trace_model

LOG = logging.getLogger("rewriter")

TOLERANCE = ROUNDING
"""Largest difference of an output, as a share of its largest value, in single and double precision."""

HALF_TOLERANCE = ROUNDING_OF_16_BITS
"""The same for 16-bit types, whose significands have 8 or 11 bits."""


@dataclass(frozen=True)
class Target:
    """The weight that a layer is folded into, and the number of input channels of each of its maps."""

    path: str
    module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    channels: list[int]

    @property
    def padding(self) -> list[int]:
        """Zero padding of the weight around each map, as ``torch.nn.functional.pad`` takes it."""
        if isinstance(self.module, nn.Linear) or self.module.padding_mode != "zeros":
            return []
        if self.module.padding == "valid":
            return []
        sides: list[int] = []
        for size, dilation, padding in zip(
            reversed(self.module.kernel_size), reversed(self.module.dilation), reversed(self._padding()), strict=True
        ):
            total = dilation * (size - 1)
            sides += [total // 2, total - total // 2] if padding is None else [padding, padding]
        return sides if any(sides) else []

    def _padding(self) -> Sequence[int | None]:
        assert not isinstance(self.module, nn.Linear)
        if self.module.padding == "same":
            return [None] * len(self.module.kernel_size)
        return list(self.module.padding)  # type: ignore[arg-type]


def fold(
    model: Model,
    inplace: bool = False,
    *,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
) -> Model:
    """Fold the constants of calibrated equalizers into the weights that follow, for inference and export.

    The output in evaluation mode stays the same up to rounding; this is checked on one input, one equalizer after
    another. What cannot be folded exactly is left as it is, with the reason in :func:`rewriter.report`; so is an
    equalizer that is also used on other branches of the model's code. Set flags that select a path through the model
    before folding, as before an export. The result is for inference: it can be trained, but with the unequal gradients
    that the equalizers removed, and :func:`rewriter.undo` refuses it. A weight without bias gets one.

    Args:
        model: a rewritten and calibrated model, in any mode; the result is in evaluation mode. One that was rewritten
            without getting an equalizer is copied as it is, with a line in the log ``"rewriter"``.
        inplace: fold ``model`` itself instead of a copy.
        example_inputs, input_size: what to check it on, as for :func:`rewriter.rewrite`; None uses the input size of
            the rewrite.

    Raises:
        FoldError: the model was never rewritten, was not calibrated, or is already folded.
        ModelError, InputError, TraceError: the model is wrapped or compiled, or does not run on the input.
            The model is unchanged in every case.

    Example:
        >>> original = rewriter.zoo.create("zoo:psphead-resnet10t", channels=16).model
        >>> model = rewriter.rewrite(original, "scale-equalizer", input_size=64)
        >>> model = rewriter.calibrate(model, [torch.randn(4, 3, 64, 64)], progress=False)
        >>> folded = rewriter.fold(model, input_size=64)
        >>> len(rewriter.report(folded).applied)
        1
    """
    check_model(model)
    refuse_adapters(model)
    inplace = checked_flag("inplace", inplace)
    layers = calibrated_layers(model)
    if not layers and not needs_no_calibration(model):
        raise FoldError(f"{type(model).__name__} has no equalizers to fold: rewrite it with scale-equalizer first")
    if not layers:
        LOG.info("fold: %s was rewritten and has no equalizers: nothing to fold", type(model).__name__)
        return (model if inplace else copy_model(model)).eval()
    if not any(layer.calibrated for layer in layers.values()):
        raise FoldError("the equalizers were not calibrated: run rewriter.calibrate(model, batches) first")
    if any(layer.absorbed is not None for layer in layers.values()):
        raise FoldError("the model was folded before")
    if not records_of(model):
        raise FoldError(
            f"{type(model).__name__} was not rewritten itself: it holds, or is part of, a model that was; give that"
        )
    inputs = _inputs(model, example_inputs, input_size)
    target = model if inplace else copy_model(model)
    recording = trace_model(target, inputs).eval
    flow = recording.dataflow
    written = [parameter for name, parameter in target.named_parameters() if name in recording.written]
    before, conditions = _outputs(target, inputs, written), _conditions(target)
    undo: list[Callable[[], None]] = []
    left: dict[str, str] = {}
    try:
        for path, layer in calibrated_layers(target).items():
            found = conditions.get(path) or _target(target, flow, path, layer)
            if isinstance(found, str):
                left[path] = found
                continue
            undo.append(_way_back(layer, found.module))
            _fold_into(layer, found)
            change = _change(before, _outputs(target, inputs, written))
            if change:
                undo.pop()()
                left[path] = change
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    folded = tuple((path, left.get(path, "")) for path in layers)
    *earlier, last = records_of(target)
    set_records(target, (*earlier, replace(last, folded=folded)))
    return target.eval()


def _conditions(model: nn.Module) -> dict[str, str]:
    """Return, by path, why added layers that another branch of the user's code calls too cannot be folded."""
    edits = [edit for record in records_of(model) for site in record.plan.sites for edit in site.edits]
    return {
        f"{edit.path}.{name}".lstrip("."): f"where `{edit.condition}` holds, other code reads it too"
        for edit in edits
        if isinstance(edit, EditMethod) and edit.condition
        for name in edit.operation.modules
    }


def _inputs(model: nn.Module, example_inputs: ExampleInputs | None, input_size: InputSize | None) -> Inputs:
    if example_inputs is not None or input_size is not None:
        return candidate_inputs(model, example_inputs, input_size)[0]
    found = inputs_of_rewrite(model)
    if found is None:
        raise InputError(
            "the rewrite does not say what it was planned on: give example_inputs= or input_size= to fold, too"
        )
    return found


def _outputs(model: nn.Module, inputs: Inputs, written: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    with state_kept(model, written), random_state_kept(), _full_precision(), torch.no_grad():
        model.eval()
        return [t.detach().clone() for t in tensors_held(model(*inputs.args, **inputs.kwargs))]


_CONVOLUTIONS = getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)
_SWITCH, _FULL = ("fp32_precision", "ieee") if hasattr(_CONVOLUTIONS, "fp32_precision") else ("allow_tf32", False)
"""How to disable TF32; where torch has the first, reading the second may raise."""


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32, which GPUs use for convolutions by default: it rounds to 10 bits, more than the tolerance."""
    backends = (_CONVOLUTIONS, torch.backends.cuda.matmul)
    before = [getattr(backend, _SWITCH) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, _SWITCH, _FULL)
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            setattr(backend, _SWITCH, value)


def _change(before: list[torch.Tensor], after: list[torch.Tensor]) -> str:
    """Describe how the outputs differ, if by more than rounding; else empty."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return "folding would change the shape of an output"
    for old, new in zip(before, after, strict=True):
        if not old.is_floating_point() or not old.numel():
            continue
        allowed = HALF_TOLERANCE if torch.finfo(old.dtype).bits < 32 else TOLERANCE
        change, largest = difference(old, new), float(old.double().abs().max())
        if not change <= allowed * largest < math.inf:
            return (
                f"folding would change an output by {change:.3g}, more than {allowed:.0e} of its largest value "
                f"{largest:.3g}"
            )
    return ""


def _target(model: nn.Module, flow: Dataflow, path: str, layer: CalibratedLayer) -> Target | str:
    """Return the weight that ``layer`` can be folded into, or why there is none."""
    own = [node for node in flow.nodes() if facts(node)["owner"].path == path]
    results = [node for node in own if any(user not in own for user in flow.users(node))]
    readers = {user for node in results for user in flow.users(node)}
    if not own:
        return "it is not used in evaluation mode"
    if len(readers) != 1 or (join := readers.pop()).meta["kind"] is not Kind.CONCAT:
        return "what it normalises is summed, and a sum has no weights of its own for each map"
    weight = _only_reader(flow, join)
    if weight is None or weight.op != "call_module" or facts(weight)["kind"] not in (Kind.CONV, Kind.LINEAR):
        return "the concatenation is not read by one weight alone, directly"
    module = model.get_submodule(str(weight.target))
    calls = [n for n in flow.nodes() if n.op == "call_module" and model.get_submodule(str(n.target)) is module]
    if len(calls) > 1:
        return f"{weight.target} is called {len(calls)} times"
    if not _is_plain(module):
        return f"{weight.target} is a {type(module).__name__} with a forward of its own"
    if "weight" not in module._parameters:
        return f"the weight of {weight.target} is computed from other parameters"
    if _is_shared(model, module):
        return f"the weight or bias of {weight.target} is shared"
    dim = -1 if isinstance(module, nn.Linear) else 1
    maps = _in_order_of(join, results)
    if len(maps) < layer.operands:
        return "one of its maps does not depend on the input"
    channels = [facts(node)["shape"][dim] for node in maps]
    taken = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    if sum(channels) != taken:
        return f"the maps are joined along another dimension than the one that {weight.target} reads"
    return Target(str(weight.target), module, channels)  # type: ignore[arg-type]


def _only_reader(flow: Dataflow, node: fx.Node) -> fx.Node | None:
    """Return the only operation that reads ``node``, ignoring dropouts and identities."""
    users = flow.users(node)
    while len(users) == 1 and facts(users[0])["kind"] in (Kind.DROPOUT, Kind.IDENTITY):
        users = flow.users(users[0])
    return users[0] if len(users) == 1 else None


def _in_order_of(join: fx.Node, results: list[fx.Node]) -> list[fx.Node]:
    return [node for node in argument(join, "tensors", 0) if node in results]


def _is_plain(module: nn.Module) -> bool:
    """Whether the module uses its weight as torch's own layers do."""
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, plain) and type(module).forward in {cls.forward for cls in plain}


def _is_shared(model: nn.Module, module: nn.Module) -> bool:
    """Whether another parameter of the model is, or shares memory with, one of the module's."""
    places = Counter(p.data_ptr() for m in model.modules() for p in m._parameters.values() if p is not None)
    return any(places[p.data_ptr()] > 1 for p in module._parameters.values() if p is not None)


def _way_back(layer: CalibratedLayer, module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Callable[[], None]:
    """Return a function that restores the present state of ``layer`` and ``module``."""
    weight, bias, padding = module.weight.detach().clone(), module.bias, getattr(module, "padding", None)
    old_bias = None if bias is None else bias.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            module.weight.copy_(weight)
            if bias is not None and old_bias is not None:
                bias.copy_(old_bias)
        module.bias = bias
        if padding is not None:
            module.padding = padding  # type: ignore[assignment, union-attr]
        layer.absorbed = None

    return restore


def _fold_into(layer: CalibratedLayer, target: Target) -> None:
    module, weight, constants = target.module, target.module.weight.detach(), layer.constants()
    channels = torch.tensor(target.channels)
    means, scales = (
        torch.tensor(values, dtype=torch.float64).repeat_interleave(channels).to(weight.device)
        for values in zip(*constants, strict=True)
    )
    columns = _input_channels(module).to(weight.device)
    shape = (*columns.shape, *[1] * (weight.dim() - 2))
    scaled = weight.double() * scales[columns].view(shape)
    shift = (scaled * means[columns].view(shape)).flatten(1).sum(1)
    padding = target.padding
    with torch.no_grad():
        module.weight.copy_(scaled)
        if module.bias is None:
            module.bias = nn.Parameter((-shift).to(weight.dtype), requires_grad=module.weight.requires_grad)
        else:
            module.bias.copy_(module.bias.double() - shift)
    if padding and not isinstance(module, nn.Linear):
        module.padding = (0,) * len(module.kernel_size)  # type: ignore[assignment]
    layer.absorbed = [(padding, mean) for mean, _ in constants]


def _input_channels(module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> torch.Tensor:
    """Return, for each output and each column of the weight, the input channel it is multiplied with."""
    if isinstance(module, nn.Linear):
        return torch.arange(module.in_features).expand(module.out_features, -1)
    width = module.in_channels // module.groups
    group = torch.arange(module.out_channels) // (module.out_channels // module.groups)
    return group[:, None] * width + torch.arange(width)
