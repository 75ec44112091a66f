"""Where a model, its hooks and this package lie does not decide what is recorded, nor what an error says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torchvision
from torch import nn

import rewriter

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        return x.view(7, -1, 11)
"""
HOOK = """
seen = []

def log(*call):
    seen.append(call)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """A function that writes a package into a folder and imports one of its modules."""
    made: list[str] = []

    def load(folder: Path, name: str, module: str, **texts: str) -> ModuleType:
        (folder / name).mkdir(parents=True)
        for file, text in {"__init__": "", **texts}.items():
            (folder / name / f"{file}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(folder)
        made.append(name)
        return importlib.import_module(f"{name}.{module}")

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[name]


@pytest.mark.parametrize("folder", ["rewriter/tracing", "src/rewriter/hooks.py", "torch", "site-packages/rewriter"])
def test_an_error_names_the_users_line_in_a_folder_of_any_name(
    package: Callable[..., ModuleType], tmp_path: Path, folder: str
) -> None:
    net = package(tmp_path / folder, "own_project", "net", net=MODEL)
    with pytest.raises(rewriter.TraceError) as caught:
        rewriter.trace(net.Net(), input_size=32)
    assert f"{net.__file__}:11 (`return x.view(7, -1, 11)`)" in str(caught.value)


def test_an_error_inside_torchvision_names_its_line() -> None:
    """Its folder is called as torch's is, and then some."""
    model = torchvision.models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    with pytest.raises(rewriter.TraceError, match=r"at .*vision_transformer\.py:\d+"):
        rewriter.trace(model, input_size=64)


def test_the_recorded_lines_are_the_users_in_a_folder_of_the_name_of_this_package(
    package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    text = MODEL.replace("x.view(7, -1, 11)", "x.relu()")
    net = package(tmp_path / "rewriter" / "tracing", "their_net", "net", net=text)
    trace = rewriter.trace(net.Net(), input_size=32)
    owners = {(n.meta["owner"].file, n.meta["owner"].line) for n in trace.graph.nodes if n.meta["kind"] is not None}
    assert (net.__file__, 11) in owners


class TestHooks:
    """Hooks of an installed library take part in a trace, those of the user's own project do not."""

    def counted(self, package: Callable[..., ModuleType], folder: Path, name: str) -> int:
        text = "from torch import nn\n\nclass Net(nn.Sequential):\n    pass\n"
        net = package(folder, name, "net", net=text, log=HOOK)
        log = importlib.import_module(f"{name}.log")
        model = net.Net(nn.Conv2d(3, 4, 3), nn.ReLU())
        model.register_forward_hook(log.log)
        rewriter.trace(model, input_size=16)
        return len(log.seen)

    @pytest.mark.parametrize("folder", ["site-packages", "lib/python3/dist-packages"])
    def test_installed(self, package: Callable[..., ModuleType], tmp_path: Path, folder: str) -> None:
        assert self.counted(package, tmp_path / folder, "installed_library") == 2  # once a mode

    def test_installed_into_a_folder_of_another_name(self, package: Callable[..., ModuleType], tmp_path: Path) -> None:
        """``pip install --target vendor``"""
        (tmp_path / "vendor" / "vendored_library-1.0.dist-info").mkdir(parents=True)
        assert self.counted(package, tmp_path / "vendor", "vendored_library") == 2

    @pytest.mark.parametrize("folder", ["site-packages/project", "project"])
    def test_a_project_below_such_a_folder(
        self, package: Callable[..., ModuleType], tmp_path: Path, folder: str
    ) -> None:
        assert self.counted(package, tmp_path / folder, "project_of_theirs") == 0
