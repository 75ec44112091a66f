"""A rewritten model in a directory, and back, bit for bit."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import rewriter
from rewriter.planning.record import records_of
from rewriter.storage import directory as storage

RECIPE = {"model": "test_vit", "kwargs": {"proj_drop_rate": 0.1, "img_size": (64, 64)}}


def original() -> nn.Module:
    return timm.create_model("test_vit", **RECIPE["kwargs"])


def rewritten(**arguments: Any) -> nn.Module:
    return rewriter.rewrite(original(), "dropout", input_size=64, verify=False, **arguments)


def outputs(model: nn.Module) -> list[torch.Tensor]:
    """In evaluation mode, and in training mode with a seed."""
    model = copy.deepcopy(model)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = [model.eval()(image)]
        torch.manual_seed(2)
        return [*found, model.train()(image)]


def assert_same(first: nn.Module, second: nn.Module) -> None:
    assert type(first).__qualname__ == type(second).__qualname__
    states = first.state_dict(), second.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs(first), outputs(second), strict=True))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)  # not the weights that a test makes
    directory = tmp_path_factory.mktemp("once") / "saved"
    rewriter.save(rewritten(), directory, recipe=RECIPE)
    return directory


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved_once, tmp_path / "saved")
    return tmp_path / "saved"


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestRoundTrip:
    def test_by_name(self, tmp_path: Path) -> None:
        model = rewritten()
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        assert listing(tmp_path) == ["saved"]
        assert listing(tmp_path / "saved") == ["model.safetensors", "plan.json", "recipe.json", "report.json"]
        loaded = rewriter.load(tmp_path / "saved")
        assert_same(model, loaded)
        dropped, plain = outputs(loaded), outputs(original())
        assert not torch.equal(dropped[1], plain[1])

    def test_into_a_given_model(self, tmp_path: Path) -> None:
        model, fresh = rewritten(), original()
        rewriter.save(model, str(tmp_path / "saved"))
        before = copy.deepcopy(fresh.state_dict())
        loaded = rewriter.load(str(tmp_path / "saved"), fresh)
        assert_same(model, loaded)
        assert loaded is not fresh and not records_of(fresh)
        assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())

    @pytest.mark.slow
    def test_in_a_fresh_process(self, tmp_path: Path) -> None:
        model = rewritten()
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        torch.save(outputs(model), tmp_path / "outputs.pt")
        code = """
            import sys, torch, rewriter
            torch.set_num_threads(1)
            model = rewriter.load(sys.argv[1])
            assert model.training
            expected = torch.load(sys.argv[2])
            image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                assert torch.equal(model.eval()(image), expected[0])
                torch.manual_seed(2)
                assert torch.equal(model.train()(image), expected[1])
            undone = rewriter.undo(model)
            print(len(rewriter.report(model).applied), type(undone).__name__)
        """
        code = "\n".join(
            line.strip() if not line.startswith(" " * 16) else "    " + line.strip() for line in code.splitlines()
        )
        arguments = [sys.executable, "-c", code, str(tmp_path / "saved"), str(tmp_path / "outputs.pt")]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(len(rewriter.report(model).applied)), "VisionTransformer"]

    @pytest.mark.thorough
    def test_rewritten_twice(self, tmp_path: Path) -> None:
        model = rewritten(only="blocks.0")
        model = rewriter.rewrite(model, {"dropout": {"p": 0.2}}, input_size=64, verify=False)
        assert len(records_of(model)) == 2
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        assert len(json.loads((tmp_path / "saved" / "plan.json").read_text())) == 2
        loaded = rewriter.load(tmp_path / "saved")
        assert_same(model, loaded)
        assert [r.plan for r in records_of(loaded)] == [
            rewriter.Plan.from_json(r.plan.to_json()) for r in records_of(model)
        ]

    @pytest.mark.thorough
    def test_inserted_layers(self, tmp_path: Path) -> None:
        model = rewriter.rewrite(timm.create_model("test_mambaout"), {"dropout": {"p": 0.1}}, input_size=64)
        rewriter.save(model, tmp_path / "saved", recipe={"model": "test_mambaout"})
        assert_same(model, rewriter.load(tmp_path / "saved"))

    def test_never_rewritten(self, tmp_path: Path) -> None:
        model = original()
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        assert_same(model, rewriter.load(tmp_path / "saved"))

    def test_again(self, saved: Path) -> None:
        """What was loaded is saved as what it was."""
        before = {path.name: path.read_text() for path in saved.glob("*.json")}
        rewriter.save(rewriter.load(saved), saved, recipe=RECIPE)
        assert {path.name: path.read_text() for path in saved.glob("*.json")} == before
        assert listing(saved.parent) == ["saved"]

    def test_report_is_kept(self, tmp_path: Path) -> None:
        model = rewriter.rewrite(original(), "dropout", input_size=64)
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        report = rewriter.report(rewriter.load(tmp_path / "saved"))
        assert report.verified is True
        assert json.loads(report.to_json()) == json.loads((tmp_path / "saved" / "report.json").read_text())


class TestState:
    def test_rates_and_modes_and_frozen_parameters(self, tmp_path: Path) -> None:
        model = rewritten()
        paths = {path for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
        path = next(p for p in paths if p.endswith("proj_drop"))
        model.get_submodule(path).p = 0.4
        model.eval()
        model.get_submodule("blocks.1").train()
        model.get_submodule("patch_embed").requires_grad_(False)
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        recipe = json.loads((tmp_path / "saved" / "recipe.json").read_text())
        assert set(recipe["rates"]["p"]) == paths and recipe["rates"]["p"][path] == 0.4
        loaded = rewriter.load(tmp_path / "saved")
        assert loaded.get_submodule(path).p == 0.4
        assert {p: m.training for p, m in loaded.named_modules()} == {p: m.training for p, m in model.named_modules()}
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
        assert_same(model, loaded)

    @pytest.mark.thorough
    def test_drop_rate(self, tmp_path: Path) -> None:
        model = rewriter.rewrite(timm.create_model("test_byobnet", drop_rate=0.2), "dropout", input_size=64)
        model.drop_rate = 0.7
        rewriter.save(model, tmp_path / "saved", recipe={"model": "test_byobnet", "kwargs": {"drop_rate": 0.2}})
        recipe = json.loads((tmp_path / "saved" / "recipe.json").read_text())
        assert recipe["rates"]["drop_rate"].get("", 0.7) == 0.7
        assert recipe["kwargs"] == {"drop_rate": 0.2}
        assert_same(model, rewriter.load(tmp_path / "saved"))

    @pytest.mark.thorough
    def test_selection_is_recorded(self, tmp_path: Path) -> None:
        model = rewritten(only="blocks.*", skip=["blocks.0", "re:blocks.1.*"])
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        recipe = json.loads((tmp_path / "saved" / "recipe.json").read_text())
        assert recipe["rewrites"][0]["only"] == ["blocks.*"]
        assert recipe["rewrites"][0]["skip"] == ["blocks.0", "re:blocks.1.*"]
        assert (recipe["model"], recipe["kwargs"]["img_size"]) == ("test_vit", [64, 64])
        assert recipe["class"] == "timm.models.vision_transformer.VisionTransformer"
        assert {"rewriter", "torch", "timm"} <= set(recipe["versions"])
        assert_same(model, rewriter.load(tmp_path / "saved"))

    @pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
    def test_types(self, tmp_path: Path, change: Callable[[nn.Module], nn.Module]) -> None:
        model = change(rewritten())
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        loaded = rewriter.load(tmp_path / "saved")
        tensors = [[t.dtype for t in (*m.parameters(), *m.buffers())] for m in (model, loaded)]
        assert tensors[0] == tensors[1]
        states = model.state_dict(), loaded.state_dict()
        assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))

    def test_memory_format(self, tmp_path: Path) -> None:
        model = rewritten().to(memory_format=torch.channels_last)
        rewriter.save(model, tmp_path / "saved", recipe=RECIPE)
        loaded = rewriter.load(tmp_path / "saved")
        strides = [[p.stride() for p in m.parameters() if not p.is_contiguous()] for m in (model, loaded)]
        assert strides[0] and strides[0] == strides[1]
        assert_same(model, loaded)

    def test_odd_tensors(self, tmp_path: Path) -> None:
        """Tied, overlapping, transposed and empty ones, numbers without dimension, and values that equal nothing."""

        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
                self.second.weight = self.first.weight
                self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())
                self.register_buffer("part", self.turned[:1])
                self.register_buffer("empty", torch.zeros(0, 3))
                self.register_buffer("number", torch.tensor(float("nan")))
                self.register_buffer("spread", torch.tensor([1.0]).expand(4))

        model = Odd()
        rewriter.save(model, tmp_path / "saved")
        stored = safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors")
        assert "first.weight" in stored and "second.weight" not in stored
        fresh = Odd()
        fresh.spread = torch.zeros(4)
        loaded = rewriter.load(tmp_path / "saved", fresh)
        assert loaded.second.weight is loaded.first.weight
        torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0, equal_nan=True)

    def test_options_that_fetch_weights_are_not_kept(self, tmp_path: Path) -> None:
        kwargs = RECIPE["kwargs"] | {"pretrained": True, "checkpoint_path": "elsewhere.pt"}
        rewriter.save(rewritten(), tmp_path / "saved", recipe={"model": "test_vit", "kwargs": kwargs})
        recipe = json.loads((tmp_path / "saved" / "recipe.json").read_text())
        assert set(recipe["kwargs"]) == {"proj_drop_rate", "img_size"}
        rewriter.load(tmp_path / "saved")

    def test_random_numbers_are_left_alone(self, saved: Path) -> None:
        before = torch.get_rng_state()
        rewriter.load(saved)
        assert torch.equal(before, torch.get_rng_state())


class TestSaveRefuses:
    @pytest.mark.parametrize("content", ["notes.txt", "recipe.json", ".hidden"])
    def test_foreign_directory(self, tmp_path: Path, content: str) -> None:
        (tmp_path / content).write_text("mine")
        with pytest.raises(rewriter.StorageError, match=r"was not written by rewriter\.save"):
            rewriter.save(rewritten(), tmp_path)
        assert (tmp_path / content).read_text() == "mine" and listing(tmp_path) == [content]

    def test_own_directory_with_a_foreign_file(self, saved: Path) -> None:
        (saved / "notes.txt").write_text("mine")
        with pytest.raises(rewriter.StorageError, match=r"notes\.txt"):
            rewriter.save(rewritten(), saved)

    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(rewriter.StorageError, match="is a file"):
            rewriter.save(rewritten(), tmp_path / "file")

    def test_empty_directory_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        rewriter.save(rewritten(), tmp_path / "a")
        rewriter.save(rewritten(), tmp_path / "new" / "deep")
        assert len(listing(tmp_path / "a")) == len(listing(tmp_path / "new" / "deep")) == 4

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        for value in (None, nn.Linear, nn.Sequential(nn.DataParallel(nn.Linear(1, 1)))):
            with pytest.raises(rewriter.ModelError):
                rewriter.save(value, tmp_path / "saved")  # type: ignore[arg-type]
        assert listing(tmp_path) == []

    def test_tensors_without_values(self, tmp_path: Path) -> None:
        with pytest.raises(rewriter.StorageError, match="meta"):
            rewriter.save(nn.Linear(1, 1, device="meta"), tmp_path / "saved")

    @pytest.mark.parametrize(
        "recipe", [{"name": "x"}, {"model": 1}, {"model": "x", "kwargs": 1}, {"kwargs": {"layer": nn.ReLU}}]
    )
    def test_recipe(self, tmp_path: Path, recipe: dict[str, Any]) -> None:
        with pytest.raises(rewriter.StorageError, match="recipe"):
            rewriter.save(nn.Linear(1, 1), tmp_path / "saved", recipe=recipe)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
    @pytest.mark.parametrize("step", ["safetensors.torch.save_file", "rewriter.storage.directory._put_in_place"])
    def test_interrupted(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
    ) -> None:
        before = {path.name: path.read_bytes() for path in saved.iterdir()}

        def interrupt(*arguments: Any, **settings: Any) -> None:
            raise error

        monkeypatch.setattr(step, interrupt)
        with pytest.raises((KeyboardInterrupt, rewriter.StorageError)):
            rewriter.save(rewritten(), saved)
        with pytest.raises((KeyboardInterrupt, rewriter.StorageError)):
            rewriter.save(rewritten(), saved.parent / "other")
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
        assert listing(saved.parent) == ["saved"]

    def test_interrupted_between_the_renames(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = Path.rename

        def once(self: Path, target: Path) -> Any:
            if self.name.endswith(".partial"):
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", once)
        with pytest.raises(KeyboardInterrupt):
            rewriter.save(rewritten(), saved)
        monkeypatch.undo()
        assert listing(saved.parent) == ["saved"]
        rewriter.load(saved)

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
    def test_no_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(rewriter.StorageError, match="cannot be written"):
            rewriter.save(rewritten(), tmp_path / "saved")


def change_recipe(directory: Path, **changes: Any) -> None:
    recipe = json.loads((directory / "recipe.json").read_text())
    (directory / "recipe.json").write_text(json.dumps(recipe | changes))


class TestLoadRefuses:
    @pytest.mark.parametrize("file", ["recipe.json", "plan.json", "report.json", "model.safetensors"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "shortened", "flipped", "replaced"])
    def test_damaged_file(self, saved: Path, file: str, damage: str) -> None:
        path, fresh = saved / file, original()
        data = path.read_bytes()
        before = copy.deepcopy(fresh.state_dict())
        if damage == "missing":
            path.unlink()
        else:
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
            path.write_bytes({"empty": b"", "shortened": data[:-9], "flipped": flipped, "replaced": b"[1, 2]"}[damage])
        for model in (None, fresh):
            with pytest.raises(rewriter.StorageError, match=file if damage != "replaced" else "json|safetensors"):
                rewriter.load(saved, model)
        assert not records_of(fresh)
        assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(rewriter.StorageError, match="no such directory"):
            rewriter.load(tmp_path / "nowhere")

    def test_other_format(self, saved: Path) -> None:
        change_recipe(saved, format=99)
        with pytest.raises(rewriter.StorageError, match="expected format 2, found 99"):
            rewriter.load(saved)

    @pytest.mark.parametrize(
        "changes",
        [
            {"rates": {"p": {"no.such": 0.1}, "drop_rate": {}}},
            {"rates": {"p": {"pos_drop": 7}, "drop_rate": {}}},
            {"rates": {"p": {"pos_drop": "x"}, "drop_rate": {}}},
            {"rates": {}},
            {"rates": []},
            {"training": 1},
            {"in_other_mode": ["no.such"]},
            {"frozen": ["no.such"]},
            {"memory_order": {"pos_embed": [0, 0, 1]}},
            {"model": 3},
            {"kwargs": {"checkpoint_path": "elsewhere"}},
            {"kwargs": {"no_such": 1}},
            {"model": "no such model"},
            {"class": "somewhere.Else"},
            {"sha256": {}},
        ],
        ids=str,
    )
    def test_damaged_recipe(self, saved: Path, changes: dict[str, Any]) -> None:
        change_recipe(saved, **changes)
        with pytest.raises(rewriter.StorageError):
            rewriter.load(saved)

    def test_no_name(self, tmp_path: Path) -> None:
        rewriter.save(rewritten(), tmp_path / "saved")
        with pytest.raises(rewriter.StorageError, match=r"VisionTransformer"):
            rewriter.load(tmp_path / "saved")

    def test_other_model(self, saved: Path) -> None:
        for name in ("test_resnet", "test_vit2"):
            with pytest.raises(rewriter.PlanError):
                rewriter.load(saved, timm.create_model(name))

    def test_weights_that_do_not_fit(self, saved: Path) -> None:
        fresh = timm.create_model("test_vit", num_classes=7, **RECIPE["kwargs"])
        with pytest.raises(
            rewriter.StorageError, match=r"another shape: head\.weight \[1000, 64\] instead of \[7, 64\]"
        ):
            rewriter.load(saved, fresh)
        assert not records_of(fresh)

    def test_version_is_told(self, saved: Path) -> None:
        change_recipe(saved, versions={"timm": "0.0.1"})
        with pytest.raises(rewriter.StorageError, match=r"saved with timm 0\.0\.1, here"):
            rewriter.load(saved, timm.create_model("test_vit", num_classes=7, **RECIPE["kwargs"]))

    def test_rewritten_model(self, saved: Path) -> None:
        with pytest.raises(rewriter.StorageError, match="already rewritten"):
            rewriter.load(saved, rewritten())

    def test_model_without_memory(self, saved: Path) -> None:
        with torch.device("meta"):
            fresh = original()
        with pytest.raises(rewriter.StorageError, match="meta device"):
            rewriter.load(saved, fresh)

    def test_weights_tied_in_another_way(self, tmp_path: Path) -> None:
        model, tied = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
        tied[1].weight = tied[0].weight
        rewriter.save(model, tmp_path / "saved")
        with pytest.raises(rewriter.StorageError, match=r"differ from those saved: 0\.weight"):
            rewriter.load(tmp_path / "saved", tied)

    def test_nothing_is_executed(self, saved: Path) -> None:
        """No name in the files is imported or evaluated."""
        plans = json.loads((saved / "plan.json").read_text())
        plans[0]["sites"][0]["edits"] = [
            {"kind": "add", "path": "", "name": "x", "layer": "os.system", "options": {}, "references": {}}
        ]
        (saved / "plan.json").write_text(json.dumps(plans))
        checksums = json.loads((saved / "recipe.json").read_text())["sha256"]
        change_recipe(saved, sha256=checksums | {"plan.json": storage._sha256(saved / "plan.json")})
        with pytest.raises(rewriter.PlanError, match="no installed pass provides"):
            rewriter.load(saved)
