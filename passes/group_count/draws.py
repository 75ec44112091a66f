"""Random weights and inputs, for decisions that must not depend on a model's own values.

Two processes that create a model draw different weights, and one that loads a checkpoint has others again. Decisions
that hold for all of them are made on our own draws: the same for every seed, rank, device and dtype of the model, and
for a model without values.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from rewriter.analysis.activations import INITIAL_SLOPE
from rewriter.analysis.parameter_roles import ParameterRole
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.kinds import Kind, module_kind


def drawn_values(
    model: nn.Module, roles: Mapping[str, ParameterRole], generator: torch.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that maps each tensor of ``model`` to one with drawn values, in single precision on the CPU.

    Weights are normal around zero with variance ``1 / fan_in``. As at the start of training, gammas and other scales
    are 1, betas and biases 0, running statistics those of a unit normal, and integers 0.

    Args:
        model: only read; only the shapes and dtypes of its tensors matter.
        roles: of its parameters, by name.
        generator: source of the random numbers.
    """
    drawn = {}
    for full, parameter in model.named_parameters():
        path, _, name = full.rpartition(".")
        drawn[id(parameter)] = _parameter(model.get_submodule(path), name, parameter, roles[full], generator)
    for name, buffer in model.named_buffers():
        is_mean = any(part in name.rpartition(".")[2] for part in ("mean", "bias", "beta"))
        drawn[id(buffer)] = _filled(buffer, 0.0) if is_mean else _other(buffer, generator)

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        own = drawn.get(id(tensor))
        if own is None:  # an attribute that is no buffer
            own = _filled(tensor, 1.0)
        return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own

    return twin


def drawn_inputs(inputs: Inputs, generator: torch.Generator, *, one_sample: bool) -> Inputs:
    """Replace the traced inputs by unit normal numbers; bytes are drawn uniformly, other integers are 0.

    Args:
        inputs: what the model was traced on.
        generator: source of the random numbers.
        one_sample: draw one sample for a batch of images, and for every tensor of the same length.
    """
    tensors = tensors_in((inputs.args, inputs.kwargs))
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim() > 3), None) if one_sample else None

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        of_batch = tensor.dim() > 0 and tensor.shape[0] == batch
        shape = (1, *tensor.shape[1:]) if of_batch else tensor.shape
        if tensor.dtype is torch.uint8:
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cpu")
        if not tensor.is_floating_point():
            return torch.zeros(shape, dtype=tensor.dtype, device="cpu")
        return _normal(shape, generator)

    return inputs.map(draw)


@contextlib.contextmanager
def single_precision_on_cpu() -> Iterator[None]:
    """Make new tensors of a forward single precision on the CPU, whatever defaults the caller has set."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)


_LENGTHS = ("original0", "weight_g")
"""The names that weight normalisation gives the norms of the weights."""


def _parameter(
    module: nn.Module, name: str, parameter: torch.Tensor, role: ParameterRole, generator: torch.Generator
) -> torch.Tensor:
    if module_kind(module) is Kind.ACTIVATION:
        return _filled(parameter, INITIAL_SLOPE)
    if role in (ParameterRole.GAMMA, ParameterRole.SCALE) or name in _LENGTHS:
        return _filled(parameter, 1.0)
    if role is ParameterRole.BETA or (role is ParameterRole.ADDED and parameter.dim() < 2):
        return _filled(parameter, 0.0)
    if isinstance(module, _ConvTransposeNd) and name == "weight":
        return _weight(parameter, parameter.shape[0] // module.groups * math.prod(parameter.shape[2:]), generator)
    return _other(parameter, generator)


def _other(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a weight or a table; ones if it has only one dimension."""
    if tensor.dim() < 2:
        return _filled(tensor, 1.0)
    return _weight(tensor, math.prod(tensor.shape[1:]), generator)


def _weight(tensor: torch.Tensor, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return _filled(tensor, 0.0)
    return _normal(tensor.shape, generator) / math.sqrt(max(1, fan_in))


def _normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _filled(tensor: torch.Tensor, number: float) -> torch.Tensor:
    if tensor.is_complex():
        return torch.full(tensor.shape, complex(number), dtype=torch.complex64, device="cpu")
    if tensor.is_floating_point():
        return torch.full(tensor.shape, number, dtype=torch.float32, device="cpu")
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
