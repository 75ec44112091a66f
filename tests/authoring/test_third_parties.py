"""Passes, layers and sources of models of other packages: a broken one breaks nothing else, none replaces ours."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn
from typer.testing import CliRunner

import rewriter
from rewriter import entry_points, renamed
from rewriter.cli import commands as cli
from rewriter.errors import InstallationError, PlanError, SelectorError, StorageError
from rewriter.guideline.registry import installed_passes, resolve_passes
from rewriter.layers import registry as layers
from rewriter.layers.registry import layer_class, register_layer
from rewriter.passes import Dropout
from rewriter.passes.dropout.layers import MovedDropout

CORE = ["atrous-rates", "dropout", "group-count", "scale-equalizer", "stochastic-pooling", "weight-decay"]
GOOD = """
from dataclasses import dataclass
from typing import ClassVar
import rewriter
from rewriter import renamed

@dataclass(frozen=True)
class Good(rewriter.Pass):
    name: ClassVar[str] = "good"
    default: ClassVar[bool] = True
    summary: ClassVar[str] = "does nothing"
    paper: ClassVar[str] = "none"

    def find(self, trace):
        yield from ()

@dataclass(frozen=True)
class Needs(Good):
    name: ClassVar[str] = "needs"
    default: ClassVar[bool] = False
    rate: float

@dataclass(frozen=True)
class Needy(Needs):
    default: ClassVar[bool] = True

@dataclass(frozen=True)
class Quiet(Good):
    name: ClassVar[str] = "quiet"
    default: ClassVar[bool] = False

@dataclass(frozen=True)
class Fake(Good):
    name: ClassVar[str] = "dropout"

@dataclass(frozen=True)
class Twin(Good):
    summary: ClassVar[str] = "another one of that name"

@dataclass(frozen=True)
class First(Good):
    name: ClassVar[str] = "first"
    after: ClassVar[tuple[str, ...]] = ("second",)

@dataclass(frozen=True)
class Second(Good):
    name: ClassVar[str] = "second"
    after: ClassVar[tuple[str, ...]] = ("first",)

class Abstract(rewriter.Pass):
    name = summary = paper = "abstract"

@dataclass(frozen=True)
class Nameless(rewriter.Pass):
    def find(self, trace):
        yield from ()

@dataclass(frozen=True)
class Unpromising(Good):
    name: ClassVar[str] = "unpromising"
    contract: ClassVar[str] = "everything"

@dataclass(frozen=True)
class AfterText(Good):
    name: ClassVar[str] = "after-text"
    after: ClassVar[str] = "dropout"

function = lambda: None
instance = Good()
number = 3
"""
TEXTS = {
    "good": GOOD,
    "typo": "import rewriter\nclass Broken(rewriter.Pas):\n    pass\n",
    "lost": "import a_library_that_nobody_has\n",
    "leaves": "import sys\nsys.exit(3)\n",
    "torn": "def (\n",
    "thief": "from torch import nn\nfrom rewriter.layers.registry import register_layer\n"
    "@register_layer('dropout/moved')\nclass Mine(nn.Dropout):\n    pass\n",
}
BROKEN = {
    # what is registered, and words of the reason
    "typo:Broken": "AttributeError: No rewriter attribute Pas",
    "lost:Pass": "ModuleNotFoundError: No module named 'a_library_that_nobody_has'",
    "leaves:Pass": "SystemExit: 3",
    "torn:Pass": "SyntaxError",
    "nowhere:Pass": "ModuleNotFoundError",
    "good:Missing": "AttributeError",
    "good:function": "expected a subclass of rewriter.Pass",
    "good:instance": "expected a subclass of rewriter.Pass",
    "good:number": "expected a subclass of rewriter.Pass, found 3",
    "good:Abstract": "does not define candidates and decide",
    "good:Nameless": "has no text as its name, summary, paper",
    "good:Unpromising": "expected a rewriter.Contract",
    "good:AfterText": "expected a tuple of names",
    "good:Needy": "a pass with options that have no default cannot be applied by default",
    "good:Fake": "the name 'dropout' is taken by rewriter.passes.dropout.Dropout",
    "thief:Mine": f"the layer name 'dropout/moved' is taken by {MovedDropout.__module__}.MovedDropout",
}

Register = Callable[..., None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """A function that installs a package with entry points, given as ``name="module:object"``."""
    known = dict(layers._LAYERS)

    def install(group: str = "rewriter.passes", package: str = "third_party", **entries: str) -> None:
        root = tmp_path / package
        inner = root / f"{package}_code"
        information = root / f"{package}-1.0.dist-info"
        inner.mkdir(parents=True)
        information.mkdir()
        for module, text in {"__init__": "", **TEXTS}.items():
            (inner / f"{module}.py").write_text(text, encoding="utf-8")
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {package}_code.{value}" for name, value in entries.items()]
        (information / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")
        monkeypatch.syspath_prepend(root)
        installed_passes.cache_clear()

    yield install
    monkeypatch.undo()
    for name in [name for name in sys.modules if "_code" in name and name.partition(".")[0].endswith("_code")]:
        del sys.modules[name]
    for name in [name for name, cls in layers._LAYERS.items() if name not in known and "_code" in cls.__module__]:
        del layers._LAYERS[name]
    entry_points._told.clear()
    installed_passes.cache_clear()


def warned(act: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``act`` returns and our warnings meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = act()
    return found, [str(item.message) for item in caught if issubclass(item.category, rewriter.RewriterWarning)]


class TestPasses:
    @pytest.mark.parametrize(("value", "words"), BROKEN.items(), ids=list(BROKEN))
    def test_a_broken_one_is_left_out_and_named_once(self, register: Register, value: str, words: str) -> None:
        register(ours=value)
        found, messages = warned(lambda: [rewriter.plan(timm.create_model("test_resnet")) for _ in range(2)])
        assert [name for name, _ in found[0].passes] == CORE and str(found[0])
        (message,) = messages
        assert "'ours'" in message and "third_party" in message and words in message
        assert installed_passes()["dropout"] is Dropout
        assert layer_class("dropout/moved").__module__ == "rewriter.passes.dropout.layers"
        assert not warned(lambda: layer_class("group-count/function"))[1]

    @pytest.mark.parametrize(("value", "words"), BROKEN.items(), ids=list(BROKEN))
    def test_asked_for_by_name_it_raises_its_error(self, register: Register, value: str, words: str) -> None:
        register(ours=value)
        with pytest.warns(rewriter.RewriterWarning), pytest.raises(InstallationError) as caught:
            rewriter.plan(timm.create_model("test_resnet"), "ours")
        assert words in str(caught.value) and "third_party" in str(caught.value)
        reason, _, _ = words.partition(":")
        if reason.endswith("Error") or reason == "SystemExit":
            assert type(caught.value.__cause__).__name__ == reason

    def test_a_sound_one_takes_part_beside_a_broken_one(self, register: Register) -> None:
        register(good="good:Good", bad="typo:Broken")
        found, messages = warned(lambda: rewriter.plan(timm.create_model("test_resnet")))
        assert "good" in [name for name, _ in found.passes] and len(messages) == 1
        assert [name for name, _ in rewriter.plan(timm.create_model("test_resnet"), "good").passes] == ["good"]

    def test_one_that_is_no_default_takes_part_when_it_is_named(self, register: Register) -> None:
        register(needs="good:Needs", quiet="good:Quiet")
        assert [item.name for item in resolve_passes(None)] == CORE
        assert [item.name for item in resolve_passes({"needs": {"rate": 0.5}})] == ["needs"]
        assert [item.name for item in resolve_passes("quiet")] == ["quiet"]
        with pytest.raises(SelectorError, match="rate"):
            resolve_passes("needs")

    def test_of_two_of_one_name_the_first_package_keeps_it(self, register: Register) -> None:
        register(package="b_second", good="good:Twin")
        register(package="a_first", good="good:Good")
        found, (message,) = warned(installed_passes)
        assert found["good"].__module__ == "a_first_code.good"
        assert "b_second" in message and "the name 'good' is taken by a_first_code.good.Good" in message

    def test_one_that_registers_ours_again_changes_nothing(self, register: Register, tmp_path: Path) -> None:
        register(dropout="good:Good")
        text = tmp_path / "third_party" / "third_party-1.0.dist-info" / "entry_points.txt"
        text.write_text("[rewriter.passes]\nmine = passes:Dropout\n")
        installed_passes.cache_clear()
        found, messages = warned(installed_passes)
        defaults = [name for name, cls in found.items() if cls.default]
        assert defaults == CORE and "mine" not in found and not messages

    def test_a_circle_of_orders_is_refused(self, register: Register) -> None:
        register(first="good:First", second="good:Second")
        with pytest.raises(SelectorError, match=r"first → second|second → first"):
            resolve_passes(None)

    def test_commands_work_beside_a_broken_one(self, register: Register) -> None:
        register(ours="typo:Broken")
        for arguments in (["passes", "--json"], ["plan", "test_resnet", "--json"]):
            with pytest.warns(rewriter.RewriterWarning):
                done = CliRunner().invoke(cli.application(), arguments)
            assert done.exit_code == 0 and json.loads(done.stdout)
            installed_passes.cache_clear()
            entry_points._told.clear()
        with pytest.warns(rewriter.RewriterWarning):
            done = CliRunner().invoke(cli.application(), ["plan", "test_resnet", "--pass", "ours", "--json"])
        assert done.exit_code == 1 and json.loads(done.stdout)["error"]["type"] == "InstallationError"

    def test_a_command_tells_our_warnings_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        monkeypatch.setattr(sys, "argv", ["rewriter", "--version"])
        with pytest.raises(SystemExit):
            cli.main()
        told = [warnings.formatwarning("left out", kind, "a.py", 3) for kind in (rewriter.PlaceLeftAlone, UserWarning)]
        assert told[0] == "warning: left out\n" and told[1].startswith("a.py:3: UserWarning: left out")


class TestLayers:
    @pytest.mark.parametrize(
        "name", ["dropout/moved", "dropout/of-mine", "scale-equalizer/equalizer", "weight-decay/x"]
    )
    def test_names_of_our_passes_are_ours(self, name: str) -> None:
        before = dict(layers._LAYERS)
        with pytest.raises(InstallationError, match=f"'{name}'"):
            register_layer(name)(type("Mine", (nn.Module,), {}))
        assert before == layers._LAYERS

    def test_a_name_is_given_once(self) -> None:
        first, second = type("First", (nn.Module,), {}), type("Second", (nn.Module,), {})
        register_layer("third-party/layer")(first)
        try:
            with pytest.raises(InstallationError, match=r"taken by .*First"):
                register_layer("third-party/layer")(second)
            assert layer_class("third-party/layer") is first
            again = type("First", (nn.Module,), {})  # as a module that is loaded again makes it
            assert register_layer("third-party/layer")(again) is again is layer_class("third-party/layer")
        finally:
            del layers._LAYERS["third-party/layer"]

    def test_a_plan_with_a_layer_of_a_broken_package_says_so(self, register: Register) -> None:
        register(ours="typo:Broken")
        with pytest.warns(rewriter.RewriterWarning), pytest.raises(PlanError, match="ours/layer"):
            layer_class("ours/layer")


class TestModelSources:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Callable[[str], Path]:
        def save(name: str) -> Path:
            model = rewriter.rewrite(timm.create_model("test_vit", depth=1), "dropout", verify=False)
            rewriter.save(model, tmp_path / "saved", recipe={"model": name, "kwargs": {"depth": 1}})
            return tmp_path / "saved"

        return save

    def test_ours_are_asked_first(self, register: Register, saved: Callable[[str], Path]) -> None:
        register(group="rewriter.models", aaa="typo:create")
        again, messages = warned(lambda: rewriter.load(saved("test_vit")))
        assert isinstance(again, nn.Module) and not messages

    def test_a_broken_one_is_left_out(self, register: Register, saved: Callable[[str], Path]) -> None:
        register(group="rewriter.models", aaa="typo:create")
        with pytest.warns(rewriter.RewriterWarning) as caught, pytest.raises(StorageError, match="theirs:vit"):
            rewriter.load(saved("theirs:vit"))
        assert "rewriter.models entry point 'aaa'" in str(caught[0].message) and "third_party" in str(caught[0].message)


class TestFoldersOfTheUsersWithOurNames:
    """The guidelines and the models lie in ``rewriter``, so that a folder of the user's hides none of them."""

    CODE = """
import warnings; warnings.simplefilter("error", DeprecationWarning)
import rewriter, passes, model_zoo
from rewriter.guideline.registry import installed_passes
print(sorted(installed_passes()), passes.MINE, model_zoo.MINE)
"""

    @pytest.mark.parametrize("form", ["{}/__init__.py", "{}.py"])
    def test_both_are_found(self, form: str, tmp_path: Path) -> None:
        for name in ("passes", "model_zoo"):
            file = tmp_path / form.format(name)
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"MINE = {name!r}\n")
        done = subprocess.run([sys.executable, "-c", self.CODE], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.strip() == f"{sorted(installed_passes())} passes model_zoo", done.stderr

    @pytest.mark.slow
    def test_a_command_runs_there(self, tmp_path: Path) -> None:
        for name in ("passes", "model_zoo"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')\n")
        command = [sys.executable, "-m", "rewriter", "plan", "test_resnet", "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["sites"]


class TestOldNames:
    """What was imported, pickled or registered by an old place is the same object at the new one."""

    @pytest.mark.parametrize("name", [f"rewriter.{old}" for old in renamed.MOVED] + ["passes.dropout.layers"])
    def test_a_module_is_the_one_that_was_moved(self, name: str) -> None:
        if name.startswith("passes."):
            importlib.import_module("passes")
        now = importlib.import_module(renamed.new_name(name) or "")
        spec = now.__spec__
        sys.modules.pop(name, None)
        with pytest.warns(DeprecationWarning, match=f"{re.escape(name)} is {re.escape(now.__name__)} now"):
            assert importlib.import_module(name) is now
        assert now.__spec__ is spec and now.__name__ != name

    @pytest.mark.parametrize(
        ("room", "name"),
        [
            ("planning", "Plan"),
            ("guideline", "Pass"),
            ("layers", "register_layer"),
            ("storage", "save"),
            ("cli", "main"),
        ],
    )
    def test_a_room_with_the_name_of_a_module_has_its_names(self, room: str, name: str) -> None:
        package = importlib.import_module(f"rewriter.{room}")
        with pytest.warns(DeprecationWarning):
            found = getattr(package, name)
        assert found is getattr(sys.modules[found.__module__], name)
        assert not hasattr(package, "no_such_name")

    @pytest.mark.parametrize(
        ("old", "names"),
        {
            "guard": ("check_model", "random_state_kept", "collector_paused"),
            "record": ("Report", "Record", "Verdict", "make_report"),
            "verification": ("observe", "compare"),
            "inputs": ("Inputs", "candidate_inputs", "tensors_in", "map_tensors"),
        }.items(),
    )
    def test_a_module_that_was_divided_has_the_names_of_its_parts(self, old: str, names: tuple[str, ...]) -> None:
        module = importlib.import_module(f"rewriter.{old}")
        for name in names:
            with pytest.warns(DeprecationWarning, match=rf"rewriter\.{old}\.{name} is rewriter\..*\.{name} now"):
                found = getattr(module, name)  # and perhaps by another name
            assert found.__module__ in {f"rewriter.{part}" for part in renamed.DIVIDED[old]}
        assert not hasattr(module, "no_such_name")

    @pytest.mark.parametrize(
        ("module", "old", "new"),
        [
            ("analysis.pooling", "Role", "PoolingRole"),
            ("analysis.parameter_roles", "Role", "ParameterRole"),
            ("analysis.gammas", "Position", "GammaPosition"),
            ("sweep.request", "Request", "SweepRequest"),
            ("sweep.check", "check", "check_model_by_name"),
            ("data.registry", "Request", "SourceRequest"),
            ("planning.verify", "compare", "check_contracts"),
        ],
    )
    def test_what_was_renamed_is_found_by_its_old_name(self, module: str, old: str, new: str) -> None:
        found = importlib.import_module(f"rewriter.{module}")
        with pytest.warns(DeprecationWarning, match=rf"rewriter\.{module}\.{old} is rewriter\.{module}\.{new} now"):
            assert getattr(found, old) is getattr(found, new)
        assert not hasattr(found, "no_such_name")

    @pytest.mark.slow
    @pytest.mark.parametrize("first", ["passes", "rewriter"])
    def test_a_folder_of_the_checkout_is_the_part_of_the_same_name(self, first: str) -> None:
        code = f"""
import {first}, sys
import passes.dropout.layers, passes, rewriter.passes.dropout.layers, model_zoo.zoo, rewriter.zoo.zoo
assert passes is rewriter.passes and model_zoo is rewriter.zoo and model_zoo.zoo is rewriter.zoo.zoo
assert sys.modules["passes.dropout.layers"] is rewriter.passes.dropout.layers
"""
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
