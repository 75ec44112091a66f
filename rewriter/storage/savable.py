"""Check whether a model can be saved so that it loads into a fresh original."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from rewriter.edit.classes import original_class
from rewriter.edit.edits import AddModule
from rewriter.errors import ModelError, StorageError
from rewriter.model.refusal import check_model
from rewriter.model.whole_state import is_sharded
from rewriter.model.wrappers import holds_adapters, is_flattened, named_modules_inside
from rewriter.planning.data import PlanData
from rewriter.planning.record import is_folded, records_of, rewritten_parts
from rewriter.planning.structure import fingerprints
from rewriter.subjects.function_module import FunctionModule


def check_savable(outer: nn.Module, model: nn.Module) -> None:
    """Refuse a model that cannot be saved, or could not be loaded into a fresh original.

    Args:
        outer: the model with all its wrappers.
        model: the model inside.

    Raises:
        ModelError: it is sharded, or has wrapped submodules.
        StorageError: it was folded, or its structure was changed after the rewrite; or it is a function.
    """
    if is_flattened(outer) or any(map(is_sharded, model.parameters())):
        raise ModelError(
            "the model is sharded by FSDP, its parameters are not whole. Gather them, on every "
            "process: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True)); load them into a rewritten model without FSDP, and save that"
        )
    if isinstance(model, FunctionModule):
        raise StorageError(
            f"{type(model).__name__} is a rewritten function, and a directory holds models. Pickle it (torch.save), or "
            "keep its plan: rewriter.plan(...).to_json()"
        )
    check_model(model, may_be_wrapped=True, may_be_offloaded=True)  # neither changes what is saved
    if any(is_folded(part) for _, part in rewritten_parts(model)):
        raise StorageError("the model was folded for export; save the model that it was folded from, or use torch.save")
    adapted = next((path for path, module in model.named_modules() if holds_adapters(module)), None)
    if adapted is not None:
        raise StorageError(
            f"module {adapted!r} has adapters of peft, which a fresh original has not. Save what "
            "model.merge_and_unload() gives, and adapters by themselves with peft's save_pretrained"
        )
    for outer_path, part in rewritten_parts(model):
        path = _later_parametrization(part, records_of(part)[0].plan)
        if path is None:
            continue
        where = f"{outer_path}.{path}".lstrip(".")
        raise StorageError(
            f"module {where!r} was given parametrizations after the rewrite, which a fresh original has not. Take them "
            "off first: torch.nn.utils.parametrize.remove_parametrizations; or rewrite after they are put on"
        )


def _later_parametrization(model: nn.Module, plan: PlanData) -> str | None:
    """Return the path of a module parametrized after ``plan`` was applied to ``model``; None if none is known.

    Without the additions of rewrites and without parametrizations, the model then has the planned structure.
    """
    modules = dict(named_modules_inside(model))
    parametrized = [path for path, module in modules.items() if parametrize.is_parametrized(module)]
    if not parametrized:
        return None
    edits = [edit for record in records_of(model) for edit in record.applied.edits if isinstance(edit, AddModule)]
    left_out = [f"{edit.path}.{edit.name}".lstrip(".") for edit in edits]
    left_out += [f"{path}.parametrizations".lstrip(".") for path in parametrized]
    classes = (
        (path, original_class(type(module).__bases__[0] if path in parametrized else type(module)))
        for path, module in modules.items()
        if not any(path == other or path.startswith(f"{other}.") for other in left_out)
    )
    return parametrized[0] if plan.structure in fingerprints(classes) else None
