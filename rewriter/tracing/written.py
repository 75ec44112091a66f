"""Which parameters a model's own forward writes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rewriter.model.random_state import random_state_kept
from rewriter.model.surroundings import surroundings_kept
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.shapes import PredictedCalls
from rewriter.tracing.skeleton import meta_twin, skeleton


def written_parameters(model: nn.Module, inputs: Inputs) -> list[nn.Parameter]:
    """Parameters that the model's own forward writes to: rarely any, found by running a skeleton on meta.

    Only these have to be copied before the model is run; all of them if the skeleton does not run on meta.
    """
    written: set[str] = set()
    twins = inputs.map(lambda t: meta_twin(t.detach()))
    for training in (False, True):
        copy = skeleton(model, meta_twin).train(training)
        before = dict(copy.named_parameters())
        reads = _ReadsOfData()
        try:
            with random_state_kept(), surroundings_kept(model), torch.no_grad(), torch.device("meta"), reads:
                copy(*twins.args, **twins.kwargs)
        except Exception:
            return list(model.parameters())
        written |= {name for name, p in before.items() if p._version > 0 or id(p) in reads.found}
    return [parameter for name, parameter in model.named_parameters() if name in written]


class _ReadsOfData(PredictedCalls):
    """Records tensors whose ``.data`` was read: writes to it do not change their version counter."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _READ_DATA:  # a new object on each access
            self.found.add(id(args[0]))
        return super().__torch_function__(func, types, args, kwargs)


_READ_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
