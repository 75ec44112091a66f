"""A script's classes are the same classes when they are run, imported or spawned: the source says so, not the name."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import image
from torch import nn

import rewriter
from rewriter.planning.structure import fingerprint, named_fingerprint

SCRIPT = """
import sys
import torch
from torch import nn

import rewriter


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.drop(self.conv(x).mean((2, 3))))


def worker(rank, model):
    shapes = []
    model.drop.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    model.train()(torch.zeros(2, 3, 16, 16))
    assert shapes == [(2, 8, 14, 14)], shapes
    assert len(rewriter.report(model).applied) == 1


if __name__ == "__main__":
    directory = sys.argv[1]
    model = rewriter.rewrite(Net(), "dropout", input_size=16)
    rewriter.save(model, directory + "/saved")
    torch.save(model, directory + "/saved.pt")
    open(directory + "/plan.json", "w").write(rewriter.plan(Net(), "dropout", input_size=16).to_json())
    torch.multiprocessing.spawn(worker, args=(model,), nprocs=1)
    print("spawned")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script writes when it is run."""
    directory = tmp_path_factory.mktemp("script")
    (directory / "script_of_a_user.py").write_text(SCRIPT)
    command = [sys.executable, str(directory / "script_of_a_user.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=directory, check=False)
    assert done.returncode == 0 and "spawned" in done.stdout, done.stderr
    return directory


def imported(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_what_a_script_saved_loads_where_its_classes_are_imported(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(written / "script_of_a_user.py", "imported_under_another_name")
    loaded = rewriter.load(written / "saved", module.Net())
    module.worker(0, loaded)
    module.worker(0, rewriter.Plan.from_json((written / "plan.json").read_text()).apply(module.Net()))
    monkeypatch.setattr(sys.modules["__main__"], "Net", module.Net, raising=False)
    module.worker(0, torch.load(written / "saved.pt", weights_only=False))


@pytest.mark.slow
def test_other_code_of_the_same_name_is_refused(written: Path) -> None:
    changed = written / "changed.py"
    changed.write_text(SCRIPT.replace("self.conv(x).mean((2, 3))", "self.conv(x).relu().mean((2, 3))"))
    module = imported(changed, "changed_script")
    with pytest.raises(rewriter.PlanError, match=r"Net\.forward has another source than the plan was made for"):
        rewriter.load(written / "saved", module.Net())


def test_the_fingerprint_does_not_know_modules_and_older_ones_are_taken() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.drop(self.conv(x).mean((2, 3))))

    model, module = Net(), Net.__module__
    plan = json.loads(rewriter.plan(model, "dropout", input_size=16).to_json())
    plan["structure"] = named_fingerprint(model)
    result = rewriter.Plan.from_json(json.dumps(plan)).apply(model)
    assert torch.equal(result.eval()(image(16)), model.eval()(image(16)))
    before = fingerprint(model)
    Net.__module__ = "another"
    assert fingerprint(model) == before and named_fingerprint(model) != plan["structure"]
    Net.__module__ = module
