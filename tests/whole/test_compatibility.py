"""What version 0.1.0 wrote is read, is in force, and can be taken back; its README says how it was made."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models_of_version_0_1_0 import Classifier, Segmenter
from torch import nn
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

import rewriter
from rewriter.cli import commands as cli
from rewriter.passes import GroupCount

FIXTURES = Path(__file__).parents[1] / "fixtures" / "version_0_1_0"
OUTPUTS: dict[str, Any] = json.loads((FIXTURES / "outputs.json").read_text(encoding="utf-8"))


def plan(name: str) -> rewriter.Plan:
    return rewriter.Plan.from_json((FIXTURES / f"plan_{name}.json").read_text(encoding="utf-8"))


def unpickled(name: str) -> Any:
    """What a ``.pt`` file holds; a version of torch that cannot read its own older files is none of our business."""
    path = FIXTURES / f"{name}.pt"
    try:
        return torch.load(path, weights_only=False)
    except (pickle.UnpicklingError, AttributeError, ModuleNotFoundError) as error:
        if "torch" in str(error) and "rewriter" not in str(error):
            pytest.skip(f"torch {torch.__version__} does not read {path.name}: {error}")
        raise


def images(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Calls(TorchFunctionMode):
    """What calls of torch functions get while ``model`` runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((getattr(func, "__name__", ""), args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def input_of(self, path: str) -> torch.Tensor:
        """What the weight of the module at ``path`` is applied to."""
        weight = self.model.get_submodule(path).weight
        return next(a[0] for _, a, _ in self.calls if len(a) > 1 and a[1] is weight)

    def rates(self) -> list[float]:
        """Of the dropouts that ran."""
        return [a[1] if len(a) > 1 else k.get("p", 0.5) for name, a, k in self.calls if name == "dropout"]


@torch.no_grad()
def calls_in_training(model: nn.Module, size: int) -> Calls:
    """What a copy of ``model`` calls in a forward in training mode."""
    torch.manual_seed(1)
    calls = Calls(copy.deepcopy(model).train())
    with calls:
        calls.model(images(size))
    return calls


def zeros(x: torch.Tensor) -> float:
    return float((x == 0).float().mean())


def zeros_in(model: nn.Module, weight: str, **rates: float) -> float:
    """The share of zeros that a weight reads in training, with dropouts set to ``rates`` and all others off."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for path, rate in rates.items():
        model.get_submodule(path).p = rate
    return zeros(calls_in_training(model, 32).input_of(weight))


def is_sampled(pool: Callable[..., torch.Tensor], *arguments: Any, **options: Any) -> bool:
    """Whether two calls average other elements."""
    x = images(8)
    return not torch.equal(pool(x, *arguments, **options), pool(x, *arguments, **options))


def assert_classifier_in_force(model: nn.Module) -> None:
    dropped = 0.9
    assert zeros_in(model, "first.weight", **{"first.late": dropped}) > 0.9, "moved within forward"
    assert zeros_in(model, "first.weight", **{"first.early": dropped}) < 0.7, "removed"
    assert zeros_in(model, "second.branch.2", **{"second.branch.3": dropped}) > 0.9, "moved inside a container"
    assert zeros_in(model, "classifier", drop=dropped) == 0, "moved before the pooling, which leaves no zeros"
    assert 0.05 not in calls_in_training(model, 32).rates(), "the second functional dropout is removed"
    training = copy.deepcopy(model).train()
    assert is_sampled(training.pool) and is_sampled(training.stochastic_pooling, 2)
    assert not is_sampled(training.eval().pool) and not is_sampled(training.stochastic_pooling, 2)


def assert_plain_classifier(model: nn.Module) -> None:
    dropped = 0.9
    assert zeros_in(model, "first.weight", **{"first.late": dropped}) < 0.7
    assert zeros_in(model, "first.weight", **{"first.early": dropped}) > 0.9
    assert zeros_in(model, "second.branch.2", **{"second.branch.3": dropped}) < 0.7
    assert zeros_in(model, "classifier", drop=dropped) > 0.5
    assert 0.05 in calls_in_training(model, 32).rates()
    assert not is_sampled(copy.deepcopy(model).train().pool)


def assert_inserted_in_force(model: nn.Module) -> None:
    assert zeros_in(model, "second.branch.2", **{"second.branch.2.dropout": 0.9}) > 0.9
    assert model.second.branch[2].dropout.p == 0.25
    training = copy.deepcopy(model).train()
    assert is_sampled(training.pool) and is_sampled(training.stochastic_pooling, 2) and is_sampled(training.pooled)
    assert torch.allclose(training.eval().pooled(images(8)), images(8).mean((2, 3)), atol=1e-6)


def assert_plain_inserted(model: nn.Module) -> None:
    training = copy.deepcopy(model).train()
    assert not hasattr(model.second.branch[2], "dropout") and not is_sampled(training.pool)
    assert not hasattr(model, "pooled") and not hasattr(model, "stochastic_pooling")


def assert_segmenter_in_force(model: nn.Module) -> None:
    assert [branch[0].dilation for branch in model.pyramid.atrous] == [(6, 6), (12, 12), (18, 18)]
    calls = calls_in_training(model, 128)
    groups = [a[1] for name, a, _ in calls.calls if name == "group_norm"]
    assert groups == GROUPS and groups != [32, 32]
    training = copy.deepcopy(model).train()
    assert is_sampled(lambda x: training.pyramid.pooling[0](x))


def assert_plain_segmenter(model: nn.Module) -> None:
    assert [branch[0].dilation for branch in model.pyramid.atrous] == [(12, 12), (24, 24), (36, 36)]
    assert [a[1] for name, a, _ in calls_in_training(model, 128).calls if name == "group_norm"] == [32, 32]
    assert not hasattr(model, "scale_equalizer") and not hasattr(model.pyramid, "scale_equalizer")


GROUPS = [
    site["edits"][0].get("value", site["edits"][0].get("options", {}).get("num_groups"))
    for site in json.loads((FIXTURES / "plan_segmenter.json").read_text(encoding="utf-8"))["sites"]
    if site["pass"] == "group-count"
]
"""As the plan says it, in the order of the norms."""


def assert_equalized(model: nn.Module) -> None:
    """On the data that the constants were measured on, each map that is fused has mean 0 and standard deviation 1."""
    model = copy.deepcopy(model).train()  # batch norms that were never trained are measured so
    model.pyramid.pooling[0].keep_prob = 1.0
    seen: list[torch.Tensor] = []
    model.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for seed in (1, 2):
            model(images(128, seed))
    for level in torch.cat(seen).split([32, 8], dim=1):
        assert abs(float(level.mean())) < 1e-3 and abs(float(level.std()) - 1) < 1e-3


@torch.no_grad()
def assert_computes(model: nn.Module, name: str, size: int = 32, stride: int = 1) -> None:
    output = copy.deepcopy(model).eval()(images(size))
    expected = torch.tensor(OUTPUTS[name])
    found = output[:, :, ::stride, ::stride] if stride > 1 else output
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


KINDS: dict[str, tuple[Callable[[], nn.Module], Any, Any, dict[str, int]]] = {
    # the original, the checks of the rewritten model and of the undone one, and what its output is compared on
    "classifier": (Classifier, assert_classifier_in_force, assert_plain_classifier, {}),
    "inserted": (lambda: Classifier(drops=False), assert_inserted_in_force, assert_plain_inserted, {}),
    "segmenter": (Segmenter, assert_segmenter_in_force, assert_plain_segmenter, {"size": 128, "stride": 32}),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


class TestPlans:
    def test_a_plan_is_carried_out_and_taken_back(self, kind: str) -> None:
        create, in_force, plain, _ = KINDS[kind]
        original = create()
        rewritten = plan(kind).apply(original)
        in_force(rewritten)
        assert rewriter.report(rewritten).verified is True
        undone = rewriter.undo(rewritten)
        plain(undone)
        assert type(undone) is type(original) and list(undone.state_dict()) == list(original.state_dict())

    def test_a_plan_made_today_finds_the_same_places(self, kind: str) -> None:
        """A place may be found that was not found then; none may be lost."""
        old = plan(kind)
        passes = [{name: options} for name, options in old.passes]
        new = rewriter.plan(KINDS[kind][0](), passes, input_size=tuple(old.request["input_size"]))
        places = [{(site.pass_name, site.path, site.pattern) for site in p.sites} for p in (old, new)]
        assert places[0] and places[0] <= places[1]

    def test_every_core_pass_and_layer_is_among_them(self) -> None:
        texts = {name: (FIXTURES / f"plan_{name}.json").read_text(encoding="utf-8") for name in KINDS}
        acting = {site.pass_name for name in KINDS for site in plan(name).sites}
        advised = {advice.pass_name for name in KINDS for advice in plan(name).advice}
        assert acting | advised == {
            "atrous-rates", "dropout", "group-count", "scale-equalizer", "stochastic-pooling", "weight-decay",
        }  # fmt: skip
        for layer in (
            "dropout/dropout", "dropout/moved", "dropout/bypassed", "dropout/drops-input", "group-count/function",
            "scale-equalizer/equalizer", "stochastic-pooling/adaptive", "stochastic-pooling/local",
            "stochastic-pooling/function",
        ):  # fmt: skip
            assert any(json.dumps(layer) in text for text in texts.values()), layer
        for operation in ("move", "remove", "redirect", "adopt", "wrap"):
            assert any(f'"kind": "{operation}"' in text for text in texts.values()), operation


class TestPickles:
    def test_a_model_is_in_force_and_can_be_undone(self, kind: str) -> None:
        _, in_force, plain, compared = KINDS[kind]
        model = unpickled(kind)
        in_force(model)
        assert_computes(model, kind, **compared)
        report = rewriter.report(model)
        assert report.applied and report.verified is True
        plain(rewriter.undo(model))

    def test_it_is_copied_pickled_and_rewritten_again(self, kind: str, tmp_path: Path) -> None:
        model = unpickled(kind)
        torch.save(copy.deepcopy(model), tmp_path / "again.pt")
        again = torch.load(tmp_path / "again.pt", weights_only=False)
        KINDS[kind][1](again)
        assert type(rewriter.undo(again)) is type(KINDS[kind][0]())

    def test_its_parameters_are_decided_by_a_trace_as_then(self, kind: str) -> None:
        model = unpickled(kind)
        held = {id(p) for group in rewriter.param_groups(model) for p in group["params"]}
        assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert rewriter.report(model).to_json()

    def test_the_equalizers_hold_their_constants(self) -> None:
        assert_equalized(unpickled("segmenter"))

    def test_a_folded_model_computes_what_it_was_folded_from(self) -> None:
        folded = unpickled("folded")
        assert_computes(folded, "segmenter", 128, 32)
        with pytest.raises(rewriter.UndoError, match="folded"):
            rewriter.undo(folded)


class TestStateDicts:
    def test_into_a_model_that_is_rewritten_today(self) -> None:
        others = ["atrous-rates", "dropout", "scale-equalizer", "stochastic-pooling"]
        passes = [*others, GroupCount(rule=lambda choice: GROUPS[0])]  # the number that the state was trained with
        model = rewriter.rewrite(Segmenter(), passes, input_size=128, verify=False)
        model.load_state_dict(unpickled("segmenter_state"), strict=True)
        assert_equalized(model)

    @pytest.mark.parametrize("name", ["inserted", "segmenter"])
    def test_into_a_model_of_the_plan(self, name: str) -> None:
        model = plan(name).apply(KINDS[name][0](), verify=False)
        model.load_state_dict(unpickled(f"{name}_state"), strict=True)
        assert_computes(model, name, **KINDS[name][3])

    def test_an_original_loads_what_is_its_own(self) -> None:
        model = unpickled("segmenter")
        Segmenter().load_state_dict(rewriter.original_state_dict(model), strict=True)


class TestDirectories:
    @pytest.mark.parametrize("name", ["vit", "resnet"])
    def test_a_model_by_name(self, name: str, tmp_path: Path) -> None:
        loaded = rewriter.load(FIXTURES / f"saved_{name}")
        assert_computes(loaded, name)
        assert rewriter.report(loaded).verified is True
        undone = rewriter.undo(loaded)
        recipe = json.loads((FIXTURES / f"saved_{name}" / "recipe.json").read_text(encoding="utf-8"))
        original = timm.create_model(recipe["model"], **recipe["kwargs"])
        assert type(undone) is type(original)
        original.load_state_dict(undone.state_dict(), strict=True)
        rewriter.save(loaded, tmp_path / "again", recipe={"model": recipe["model"], "kwargs": recipe["kwargs"]})
        assert_computes(rewriter.load(tmp_path / "again"), name)

    def test_the_edits_of_a_named_model_are_in_force(self) -> None:
        model = rewriter.load(FIXTURES / "saved_vit")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.blocks[0].mlp.drop1.p = 0.9
        assert zeros(calls_in_training(model, 32).input_of("blocks.0.mlp.fc2")) > 0.8
        model.blocks[0].mlp.drop2.p = 1.0
        assert 1.0 not in calls_in_training(model, 32).rates(), "removed"

    def test_a_calibrated_model_with_its_original(self) -> None:
        loaded = rewriter.load(FIXTURES / "saved_segmenter", Segmenter())
        assert_segmenter_in_force(loaded)
        assert_computes(loaded, "segmenter", 128, 32)
        assert_equalized(loaded)
        assert_plain_segmenter(rewriter.undo(loaded))


class TestRunDirectory:
    COMMAND = (
        "compare", "test_vit", "--pass", "dropout:p=0.1", "--preserve", "nothing", "--data", "digits",
        "--model-kwargs", "embed_dim=8", "--model-kwargs", "depth=1", "--model-kwargs", "num_heads=2",
        "-r", "batch_size=16,train_images=32,test_images=40", "--seeds", "2", "--epochs", "2", "--device", "cpu",
    )  # fmt: skip

    def test_the_result_is_read(self) -> None:
        text = (FIXTURES / "run_directory" / "result.json").read_text(encoding="utf-8")
        result = rewriter.Comparison.from_json(text)
        assert result.training is not None and len(result.training.runs) == 4
        assert "verdict: undecided" in str(result)

    @pytest.mark.thorough
    def test_runs_of_other_libraries_or_plans_are_refused_and_kept(self, tmp_path: Path) -> None:
        place = tmp_path / "runs"
        shutil.copytree(FIXTURES / "run_directory", place)
        header, *runs = (place / "runs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        data = json.loads(header)
        data["versions"]["timm"] = "0.9.0"
        before = "".join([json.dumps(data) + "\n", *runs])
        (place / "runs.jsonl").write_text(before, encoding="utf-8")
        done = CliRunner().invoke(cli.application(), [*self.COMMAND, "--output", str(place)])
        assert done.exit_code == 1 and "timm is" in done.stderr and "0.9.0 in the file" in done.stderr
        assert (place / "runs.jsonl").read_text(encoding="utf-8") == before

    @pytest.mark.slow
    def test_runs_of_the_same_question_are_taken(self, tmp_path: Path) -> None:
        """What the header says of libraries and plans may be another one today; the lines of runs are read."""
        place = tmp_path / "runs"
        assert CliRunner().invoke(cli.application(), [*self.COMMAND, "--output", str(place)]).exit_code == 0
        header = (place / "runs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[0]
        old, *runs = (FIXTURES / "run_directory" / "runs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        assert set(json.loads(old)) <= set(json.loads(header)), "parts of the question"
        (place / "runs.jsonl").write_text("".join([header, *runs]), encoding="utf-8")
        done = CliRunner().invoke(cli.application(), [*self.COMMAND, "--output", str(place)])
        assert done.exit_code == 0, done.output
        assert f"all 4 runs are in {place}" in done.stderr and "verdict: undecided" in done.stdout
