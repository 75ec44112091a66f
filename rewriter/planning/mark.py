"""The mark that distinguishes a checkpoint of a rewritten model from the original's if keys and shapes do not.

A changed number of groups or dilation has no key of its own: the weights of one network load into the other without an
error, and compute something else. So a model with such edits carries one more buffer at its root, the digest of these
edits. Edits with their own keys (the constants of an equalizer) are not included.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rewriter.edit.edits import Edit, EditMethod, edit_to_data
from rewriter.errors import ModelError, PlanMismatchError, RewriterWarning, listed
from rewriter.guideline.base import Site
from rewriter.layers.registry import calibrated_layers
from rewriter.model.whole_state import whole_tensor
from rewriter.planning.record import Record, records_of
from rewriter.subjects.function_module import FunctionModule

MARK = "rewriter_plan"
"""The name of the buffer."""

_BYTES = 16
_REGISTRIES = ("_load_state_dict_pre_hooks", "_state_dict_pre_hooks")


def changing_sites(records: Sequence[Record]) -> list[Site]:
    """Return the sites of passes that change the output in evaluation mode."""
    return [
        site
        for record in records
        for site in record.plan.sites
        if (contract := record.plan.contracts.get(site.pass_name)) is not None and not contract.eval_output
    ]


def check_room(model: nn.Module) -> None:
    """Refuse a model that already uses the mark's name for another attribute.

    Raises:
        ModelError: it does.
    """
    if hasattr(model, MARK) and not has_mark(model):
        raise ModelError(f"{type(model).__name__} has an attribute {MARK!r} of its own, where the mark of edits goes")


def has_mark(model: nn.Module) -> bool:
    """Whether ``model`` carries the mark."""
    return any(isinstance(_inner(hook), _Loading) for hook in model._load_state_dict_pre_hooks.values())


def place_mark(model: nn.Module) -> None:
    """Add the mark of the edits in ``model``; none if all of them preserve the output, or it is a function.

    A function has no weights that could be loaded into it, or from it into the original.
    """
    sites = changing_sites(records_of(model))
    if not sites or isinstance(model, FunctionModule):
        remove_mark(model)
        return
    _remove_hooks(model)
    digest = _digest([edit for site in sites for edit in site.edits])
    if MARK not in model._buffers:
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        model.register_buffer(MARK, torch.empty(_BYTES, dtype=torch.uint8, device=device))
    told = listed(_told(sites))
    model._register_load_state_dict_pre_hook(_Loading(digest, told), with_module=True)  # type: ignore[no-untyped-call]
    saving = _Saving(digest)
    model.register_state_dict_pre_hook(saving)  # type: ignore[no-untyped-call]
    saving(model)


def remove_mark(model: nn.Module) -> None:
    """Remove the mark, if there is one."""
    if has_mark(model):
        _remove_hooks(model)
        model._buffers.pop(MARK, None)
        model._non_persistent_buffers_set.discard(MARK)


def warn_of_changed_output(model: nn.Module, what: str) -> None:
    """Warn that the returned weights were trained in a function other than the one the original computes.

    A function has none, nor has a loss.
    """
    tensors = (name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers()))
    if isinstance(model, FunctionModule) or all(name.rpartition(".")[2] == MARK for name in tensors):
        return
    told = _told(changing_sites(records_of(model)))
    layers = calibrated_layers(model).items()
    told += [f"{path}: calibrated" for path, layer in layers if layer.calibrated and layer.absorbed is None]
    if told:
        warnings.warn(
            f"{what} gives weights for the original, which computes something else with them: edits that change the "
            f"output are in force ({listed(told)}). Weights trained with them belong with the rewritten model.",
            RewriterWarning,
            stacklevel=3,
        )


@contextlib.contextmanager
def nothing_said() -> Iterator[None]:
    """Suppress :func:`warn_of_changed_output` where no weights are returned to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RewriterWarning)
        yield


def _told(sites: Sequence[Site]) -> list[str]:
    return [f"{site.path or 'the root'}: {site.action.partition(',')[0]}" for site in sites]


class _Saving:
    """Hook before a state dict is made: restores the digest, even after ``to_empty`` or averaging of buffers."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def __call__(self, module: nn.Module, *_: Any) -> None:
        buffer = module._buffers.get(MARK)
        if buffer is not None and not buffer.is_meta:
            with torch.no_grad():
                buffer.copy_(_tensor(self.digest))


class _Loading:
    """Hook before a state dict is loaded: checks whether it comes from a model with these edits."""

    def __init__(self, digest: bytes, told: str) -> None:
        self.digest, self.told = digest, told

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        key = f"{prefix}{MARK}"
        found = state.get(key)
        valued = found is not None and not getattr(found, "is_meta", False)
        same = valued and _bytes(found) == self.digest
        if valued and not same:
            problem = "is of a model with other edits, or of the same edits at other places"
            if _is_strict():
                raise PlanMismatchError(self._message(module, problem))
            self._warn(module, problem)
        elif found is None and any(other.startswith(prefix) for other in state):
            self._warn(module, "carries no mark of a plan: it is the original's, or its format drops the mark")
        if MARK not in module._buffers:  # a copy that kept only what a graph names
            state.pop(key, None)
        elif not same:
            state[key] = _tensor(self.digest)

    def _message(self, module: nn.Module, problem: str) -> str:
        return (
            f"the state dict {problem}. This {type(module).__name__} has edits that change its output: {self.told}. "
            "Rewrite a fresh original with the plan of the training that the weights come from "
            "(rewriter.rewrite(model, plan_file=...), or rewriter.Plan.apply), and load them into that."
        )

    def _warn(self, module: nn.Module, problem: str) -> None:
        warnings.warn(self._message(module, problem), RewriterWarning, stacklevel=2)


def _is_strict() -> bool:
    """Whether the running ``load_state_dict`` was called with ``strict=True``; torch's hooks always get True."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is None or bool(frame.f_locals.get("strict", True))


def _tensor(digest: bytes) -> torch.Tensor:
    return torch.tensor(list(digest), dtype=torch.uint8, device="cpu")


def _bytes(mark: Any) -> bytes:
    return bytes(whole_tensor(mark).detach().cpu().reshape(-1).tolist()) if isinstance(mark, torch.Tensor) else b""


def _digest(edits: Sequence[Edit]) -> bytes:
    """Digest what the edits change, not where it is written in the source."""
    told = []
    for edit in edits:
        data = edit_to_data(edit)
        if isinstance(edit, EditMethod):
            data = {"kind": data["kind"], "path": data["path"], "method": data["method"]}
        told.append(json.dumps(data, sort_keys=True))
    return hashlib.sha256("\n".join(sorted(told)).encode()).digest()[:_BYTES]


def _inner(hook: Any) -> Any:
    return getattr(hook, "hook", hook)


def _remove_hooks(model: nn.Module) -> None:
    for name in _REGISTRIES:
        hooks = getattr(model, name)
        for key in [key for key, hook in hooks.items() if isinstance(_inner(hook), (_Loading, _Saving))]:
            del hooks[key]
