"""Run a model on one image after the other, up to a map inside it, with gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from rewriter.errors import MeasurementError
from rewriter.model.random_state import random_state_seeded
from rewriter.model.refusal import check_model
from rewriter.model.state import state_kept
from rewriter.tracing.export import refuse_unseen
from rewriter.tracing.inputs import Inputs, Origin
from rewriter.tracing.trace import Trace, trace_candidates
from rewriter.tracing.written import written_parameters


@contextlib.contextmanager
def in_evaluation(model: nn.Module, image: torch.Tensor) -> Iterator[Trace]:
    """Put ``model`` into evaluation mode, and yield its trace on one image; afterwards it is as it was.

    Raises:
        MeasurementError: its parameters have no values.
        TraceError: it does not run on the image.
    """
    check_model(model)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise MeasurementError(f"{type(model).__name__} is on the meta device: it has no values to measure; load some")
    inputs = Inputs((image,), {}, Origin.EXAMPLE_INPUTS)
    trace = trace_candidates(model, [inputs])
    refuse_unseen(trace.eval.graph, model)
    with state_kept(model, written_parameters(model, inputs)), random_state_seeded(0), torch.inference_mode(False):
        model.eval()
        with torch.enable_grad():
            yield trace


class Run(fx.Interpreter):
    """One run of a recording on one image.

    Args:
        trace: of the model, on an image of this size.
        node: the operation whose result is kept.
        whole: whether the run goes on behind it.

    Attributes:
        image: the image, a leaf of the autograd graph.
        value: the result of the operation.
        result: of the model; None without ``whole``.
    """

    def __init__(self, trace: Trace, node: fx.Node | None, image: torch.Tensor, *, whole: bool = False) -> None:
        super().__init__(trace.model, graph=trace.eval.graph)
        self._node, self._whole = node, whole
        self.image = image.detach().clone().requires_grad_()
        self.value: torch.Tensor | None = None
        self.result: Any = None
        with contextlib.suppress(_Reached):
            self.result = self.run(self.image)

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n is self._node:
            self.value = found
            if not self._whole:
                raise _Reached
        return found


def gradient_of(scalar: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return the mean over channels of the gradient of ``scalar`` by ``image``, ``(H, W)``.

    Raises:
        MeasurementError: there is none.
    """
    (gradient,) = torch.autograd.grad(scalar, image, allow_unused=True) if scalar.requires_grad else (None,)
    if gradient is None:
        raise MeasurementError("no gradient reaches the image; something detaches what is computed from it")
    return gradient[0].double().mean(0).cpu()


class _Reached(Exception):
    """The rest of the run is not needed."""
