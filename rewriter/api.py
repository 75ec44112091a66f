"""The public functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import fx, nn

from rewriter.argument_checks import checked_flag
from rewriter.edit.classes import carries_edit, is_generated
from rewriter.edit.edits import AddModule, take_back
from rewriter.edit.held_methods import wrapped_edit
from rewriter.errors import ModelError, UndoError
from rewriter.guideline.base import Passes
from rewriter.layers.registry import is_layer
from rewriter.model.copying import copy_model
from rewriter.model.refusal import check_model
from rewriter.model.whole_state import whole_state_dict
from rewriter.model.wrappers import (
    inside,
    is_flattened,
    looked_through,
    module_inside,
    path_of_key,
    trained_copies,
)
from rewriter.planning.agreement import check_same_plan
from rewriter.planning.apply import apply_plan
from rewriter.planning.make import make_plan
from rewriter.planning.mark import MARK, has_mark, remove_mark, warn_of_changed_output
from rewriter.planning.plan import Plan
from rewriter.planning.plan_file import is_rewritten_by, plan_of_file
from rewriter.planning.record import is_folded, records_of, rewritten_parts, set_records
from rewriter.planning.remembered_inputs import inputs_to_run_on
from rewriter.planning.report import Report, make_report
from rewriter.planning.selection import Preserve, Selectors
from rewriter.planning.tensors_of_original import warn_of_lost_entries, with_tensors_of_original
from rewriter.subjects.function_module import FunctionModule, Subject, as_module
from rewriter.subjects.held_function import is_function, name_of
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.trace import Trace, trace_candidates


def rewrite(
    model: Subject,
    passes: Passes | None = None,
    *,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
    only: Selectors | None = None,
    skip: Selectors | None = None,
    preserve: Preserve = "auto",
    inplace: bool = False,
    verify: bool = True,
    plan_file: str | Path | None = None,
    all_ranks: bool = True,
) -> Subject:
    """Apply guidelines to ``model`` and return it, an object of the same class; of a function, one called alike.

    Rewrite before building the optimizer, EMA, ``torch.compile`` and DDP: with ``inplace=False`` the result is a copy
    with its own parameters.

    Args:
        model: any ``nn.Module`` that runs on the input; its mode, device and data types are kept. Or a function, such
            as a loss, with ``example_inputs``: it stays as it is, and what is returned has its signature and
            ``__wrapped__``, and is pickled.
        passes: None for the passes that are applied by default, the six of this project; ``()`` for none; or names,
            instances and one-key dicts with options.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of tensors.
        input_size: instead of examples: an int, ``(H, W)`` or ``(C, H, W)``. If neither is given, the model is run on
            inputs like those of its latest rewrite, or else on the size in its own configuration.
        only, skip: module paths, globs, ``"re:…"`` patterns or classes that limit where edits are made.
        preserve: ``"auto"`` skips passes that change the eval output if the model carries trained weights; ``"eval"``
            always skips them, ``"nothing"`` never.
        inplace: edit ``model`` itself instead of a copy.
        verify: check each pass's contract by running the model before and after.
        plan_file: path of the plan of a training run. If the file does not exist, the plan is made and written. If it
            does, it is applied unchanged, whatever ``only``, ``skip``, ``preserve`` and the input say: one line for
            first and resumed runs, every process, and evaluation. A model that it has rewritten is returned as is.
        all_ranks: where ``torch.distributed`` is initialised, whether every process makes this call. If so, all must
            find the same plan; with ``plan_file``, only the first process analyses and plans, writes the file and sends
            the plan to the others. If False, this process acts independently.

    Raises:
        PlanError: the plan in ``plan_file`` is damaged, has other passes or options, or does not fit the model.
        RewriterError: any refusal; the model passed in is then exactly as it was.

    Example:
        >>> model = timm.create_model("test_resnet", drop_rate=0.2)
        >>> model = rewriter.rewrite(model, ["dropout", {"weight-decay": {"gamma": "decay-all"}}])
        >>> print(rewriter.report(model).applied[0].action)
        move dropout() in forward_head() before global_pool.pool
    """
    inplace, verify = checked_flag("inplace", inplace), checked_flag("verify", verify)
    all_ranks = checked_flag("all_ranks", all_ranks)
    subject = as_module(model, inplace=inplace)
    planned: list[tuple[Plan, Trace | None, dict[str, float]]] = []

    def make() -> Plan:
        found = make_plan(
            subject,
            passes,
            example_inputs=example_inputs,
            input_size=input_size,
            only=only,
            skip=skip,
            preserve=preserve,
        )
        planned.append(found)
        return found[0]

    result: Subject
    if plan_file is None:
        made = make()
        check_same_plan(made, all_ranks=all_ranks)
    else:
        check_model(subject)
        made = plan_of_file(plan_file, make, passes, all_ranks=all_ranks)
        if is_rewritten_by(subject, made):
            return model
    if planned and planned[0][0] == made:
        ((made, traced, seconds),) = planned
        inputs = traced.inputs if traced else None
        planned.clear()
        del traced  # the trace's graphs need not outlive the plan
        result = apply_plan(
            made, subject, inplace=inplace, verify=verify, inputs=inputs, in_force=True, seconds=seconds
        )
        return result
    inputs = None
    if made.sites and (example_inputs is not None or input_size is not None):
        inputs = trace_candidates(subject, inputs_to_run_on(subject, example_inputs, input_size)).inputs
    result = apply_plan(made, subject, inplace=inplace, verify=verify, inputs=inputs, exactly=True)
    return result


def plan(
    model: Callable[..., Any],
    passes: Passes | None = None,
    *,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
    only: Selectors | None = None,
    skip: Selectors | None = None,
    preserve: Preserve = "auto",
) -> Plan:
    """Return the plan that :func:`rewrite` would apply, without applying it; the arguments are the same.

    Example:
        >>> plan = rewriter.plan(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> [(site.pass_name, site.pattern) for site in plan.sites]
        [('dropout', 'head')]
    """
    return make_plan(
        as_module(model),
        passes,
        example_inputs=example_inputs,
        input_size=input_size,
        only=only,
        skip=skip,
        preserve=preserve,
    )[0]


def undo(model: Subject, inplace: bool = False) -> Subject:
    """Undo every rewrite of ``model``: classes, structure, hyper-parameters and forward; weights keep their values.

    For a rewritten function this is the function that was given, the same object.

    If edits changed the output, or trained entries of tensors are lost, a :class:`rewriter.RewriterWarning` names them:
    with the current weights, the original computes something else. If the model is wrapped (DDP, ``torch.compile``,
    activation checkpointing), or contains rewritten models as parts, those inside are restored and the outer model is
    returned. Compiled models have to be compiled again.

    Raises:
        UndoError: the model was not rewritten, or other code has since changed the class of an edited module.
        ModelError: it cannot be copied; ``inplace=True`` needs no copy.

    Example:
        >>> model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> type(rewriter.undo(model)) is timm.models.resnet.ResNet
        True
    """
    subject: Any = model
    if is_function(subject):
        raise UndoError(f"{name_of(subject)} was not rewritten: it is the original")
    parts = rewritten_parts(looked_through(subject))
    inplace = checked_flag("inplace", inplace)
    if not parts:
        raise UndoError(f"{type(inside(subject)).__name__} was not rewritten, or is only a part of a model that was")
    if any(is_folded(part) for _, part in parts):
        raise UndoError("the model was folded for export: its weights are not those of the original any more")
    _refuse_other_classes(parts)
    _refuse_trained_copies(subject)
    if not inplace and is_flattened(subject):
        raise ModelError("the model is sharded by FSDP, and cannot be copied: rewriter.undo(model, inplace=True)")
    _refuse_wrapped_forward(parts)
    for _, part in parts:
        warn_of_changed_output(part, "rewriter.undo")
        warn_of_lost_entries(part, "rewriter.undo")
    if isinstance(subject, FunctionModule) and not inplace:
        original: Subject = subject.__wrapped__
        return original
    result: Any = subject if inplace else copy_model(subject, "rewriter.undo(model, inplace=True) needs no copy.")
    for _, part in rewritten_parts(result):
        for record in reversed(records_of(part)):
            take_back(part, record.applied)
        remove_mark(part)
        set_records(part, ())
    restored: Subject = result.__wrapped__ if isinstance(result, FunctionModule) else result
    return restored


def _refuse_other_classes(parts: list[tuple[str, nn.Module]]) -> None:
    """Refuse to undo an edited class that FSDP2 or a parametrization has subclassed since.

    Raises:
        UndoError: names the first such module.
    """
    for outer, part in parts:
        for path in (path for record in records_of(part) for path in record.applied.edited_classes):
            module = module_inside(part, path)
            if module is not None and carries_edit(type(module)) and not is_generated(type(module)):
                raise UndoError(
                    f"{_place(outer, path)} was edited and became a {type(module).__name__} since: "
                    "undo before fully_shard, or take its parametrizations off first"
                )


def _place(outer: str, path: str) -> str:
    whole = f"{outer}.{path}".strip(".")
    return f"module {whole!r}" if whole else "the model"


def _refuse_wrapped_forward(parts: list[tuple[str, nn.Module]]) -> None:
    """Refuse to undo an edited method that would keep running because other code has wrapped it since.

    Raises:
        UndoError: names the first such module.
    """
    for outer, part in parts:
        for path in (path for record in records_of(part) for path in record.applied.edited_classes):
            module = module_inside(part, path)
            if module is not None and wrapped_edit(module):
                raise UndoError(
                    f"{_place(outer, path)} was edited, and its forward was set to a function around "
                    "the edited one since, as accelerate does for mixed precision: that would go on running. Take it "
                    "off first: accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
                )


def _refuse_trained_copies(model: nn.Module) -> None:
    """Refuse to undo one of several copies of an edited module.

    Raises:
        UndoError: names the first module of which peft keeps several copies.
    """
    for path, module in trained_copies(model):
        if any(carries_edit(type(part)) for part in module.modules()):
            raise UndoError(
                f"module {path!r} was edited, and peft trains a copy of it (modules_to_save): undo before adapters are "
                "added, or undo what model.merge_and_unload() gives"
            )


def report(model: Callable[..., Any]) -> Report:
    """Report what was applied to a rewritten model, what was skipped and why, what was verified, and what is stale.

    The model may be wrapped or compiled, or contain rewritten models as parts: the report is about those inside.

    Example:
        >>> model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> rewriter.report(model).verified, len(rewriter.report(model).applied)
        (True, 1)
    """
    return Report((), ()) if is_function(model) else make_report(looked_through(model))


def trace(
    model: Callable[..., Any], example_inputs: ExampleInputs | None = None, input_size: InputSize | None = None
) -> Trace:
    """Run a skeleton of ``model``, or a function, and record it; the model itself is not touched.

    Without an input, it is run on that of its latest rewrite, or else on the size in its own configuration.

    Raises:
        ModelError, InputError, TraceError: the message names the module, the source line and the remedy.

    Example:
        >>> trace = rewriter.trace(timm.create_model("test_resnet"), input_size=64)
        >>> [trace.shape(node) for node in trace.operations(rewriter.authoring.Kind.LINEAR)]
        [(2, 1000)]
    """
    subject = as_module(model)
    check_model(subject)
    return trace_candidates(subject, inputs_to_run_on(subject, example_inputs, input_size))


def to_graph_module(
    model: Callable[..., Any], example_inputs: ExampleInputs | None = None, input_size: InputSize | None = None
) -> fx.GraphModule:
    """Export the model as one flat ``fx.GraphModule`` that shares its parameters.

    It is specific to the mode, batch size and resolution that it was traced with.

    Raises:
        TraceError: part of the model runs code that torch cannot observe.

    Example:
        >>> graph = rewriter.to_graph_module(timm.create_model("test_resnet").eval(), input_size=64)
        >>> graph(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    from rewriter.tracing.export import graph_module

    return graph_module(trace(model, example_inputs, input_size))


def original_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return a state dict that the model as it was before the rewrite loads with ``strict=True``.

    It leaves out what the rewrite added (buffers of scale equalizers, the mark of its plan, entries of padded kernels);
    all other values are current. If trained entries are left out, or edits change the output, a
    :class:`rewriter.RewriterWarning` names them: with these weights, the original computes something else. For a
    wrapped model the result is that of the model inside; if parts were rewritten, it is as if they had not been. What
    was added to modules since stays, as do its names in the keys: compiled submodules, parametrizations, peft adapters.
    Under FSDP every process gets the full state dict, and all must make this call; values that accelerate has offloaded
    are included.

    Raises:
        ModelError: the model was folded, so its weights are no longer those of the original; or it is only a part of a
            rewritten model, and only the whole knows what was added to it.

    Example:
        >>> original = timm.create_model("test_resnet", drop_rate=0.2)
        >>> model = rewriter.rewrite(original, "dropout")
        >>> original.load_state_dict(rewriter.original_state_dict(model))
        <All keys matched successfully>
    """
    outer, model = model, looked_through(model)
    parts = rewritten_parts(model)
    if any(is_folded(part) for _, part in parts):
        raise ModelError("the model was folded for export; ask the model that it was folded from")
    within = {module for _, part in parts for module in part.modules()}
    for path, module in model.named_modules():
        edited = module not in within and is_generated(type(module))
        layers = [name for name, child in module.named_children() if is_layer(type(child)) and child.state_dict()]
        if edited and layers:
            raise ModelError(
                f"{type(model).__name__} was not rewritten itself: {f'{path}.{layers[0]}'.lstrip('.')!r} was added by "
                "a rewrite of the model that it is, or was, a part of. Ask that model, and take the keys of this part."
            )
    for _, part in parts:
        warn_of_changed_output(part, "rewriter.original_state_dict")
    state = whole_state_dict(outer)
    edits = [(part, edit) for _, part in parts for record in records_of(part) for edit in record.applied.edits]
    added = {
        module_inside(part, f"{edit.path}.{edit.name}".lstrip("."))
        for part, edit in edits
        if isinstance(edit, AddModule)
    }
    paths = (path for path, module in model.named_modules(remove_duplicate=False) if module in added)
    prefixes = tuple(f"{path_of_key(path)}." for path in paths)
    marks = {f"{path_of_key(path)}.{MARK}".lstrip(".") for path, part in parts if has_mark(part)}
    kept = {key: value for key, value in state.items() if not key.startswith(prefixes) and key not in marks}
    return type(state)(with_tensors_of_original(model, kept, "rewriter.original_state_dict"))
