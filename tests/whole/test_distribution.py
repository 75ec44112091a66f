"""The wheel and the sdist hold everything, and work where folders have the names of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rewriter", "passes", "model_zoo")

pytestmark = pytest.mark.slow


def build(what: str, source: Path, target: Path) -> Path:
    """Build as an installer does, from a copy of the sources, without network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{what}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of a checkout, and that of its sdist."""
    folder = tmp_path_factory.mktemp("distribution")
    checkout, built = folder / "checkout", folder / "built"
    checkout.mkdir()
    built.mkdir()
    subprocess.run(["cp", "-R", "-P", *(str(ROOT / name) for name in SOURCES), str(checkout)], check=True)
    sdist = build("sdist", checkout, built)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    of_sdist = folder / "of_sdist"
    of_sdist.mkdir()
    return {"checkout": build("wheel", checkout, built), "sdist": build("wheel", unpacked, of_sdist)}


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_both_hold_the_same_and_all_of_it(wheels: dict[str, Path]) -> None:
    found = names(wheels["checkout"])
    assert found == names(wheels["sdist"])
    expected = {
        f"rewriter/{place}{file.relative_to(ROOT / folder)}"
        for folder, place in {"rewriter": "", "passes": "passes/", "model_zoo": "zoo/"}.items()
        for file in (ROOT / folder).rglob("*.py*")
        if file.suffix in (".py", ".pyi") or file.name == "py.typed"
        if not {"passes", "zoo"} & set(file.relative_to(ROOT / folder).parts[:1]) or folder != "rewriter"
    }
    assert found >= expected and {name.partition("/")[0] for name in found} == {"rewriter"}


@pytest.mark.parametrize("of", ["checkout", "sdist"])
def test_it_works_installed_beside_folders_of_our_names(of: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheels[of])], check=True)
    for name in ("passes", "model_zoo"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("MINE = True\n")
    code = """
import timm, rewriter, passes, model_zoo
from rewriter.passes import Dropout
assert passes.MINE and model_zoo.MINE and "/site/" in rewriter.__file__, rewriter.__file__
model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2))
print(rewriter.report(model).applied[0].pass_name)
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "dropout", done.stderr
    command = [sys.executable, "-m", "rewriter", "passes"]
    assert "dropout" in subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True).stdout
