"""``rewriter new-pass``: what it writes works as it stands, and as a distribution of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_writing_a_pass import FILES
from typer.testing import CliRunner

from rewriter.cli import commands as cli


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.application(), ["new-pass", *arguments])
    return done.exit_code, done.output


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


def test_it_writes_a_file_a_test_a_page_and_an_entry_point(tmp_path: Path) -> None:
    code, output = invoke("my-pass", "-o", str(tmp_path / "new"), "--json")
    written = json.loads(output)
    assert code == 0 and {Path(file).name for file in written["files"]} == {
        "pyproject.toml", "my_pass.py", "test_my_pass.py", "README.md",
    }  # fmt: skip
    assert 'my-pass = "my_pass:MyPass"' in (tmp_path / "new" / "pyproject.toml").read_text()


@pytest.mark.slow
def test_what_it_writes_passes_its_own_tests(tmp_path: Path) -> None:
    assert invoke("my-pass", "-o", str(tmp_path))[0] == 0
    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_my_pass.py"))
    assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my_pass.py").write_text("mine")
    code, output = invoke("my-pass", "-o", str(tmp_path))
    assert code == 1 and "my_pass.py: there already" in output
    assert [file.name for file in tmp_path.iterdir()] == ["my_pass.py"]
    assert (tmp_path / "my_pass.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["MyPass", "my_pass", "-x", "1-pass", "my pass", "class", "dropout"])
def test_a_name_that_is_none_is_wrong_usage(name: str, tmp_path: Path) -> None:
    assert invoke("-o", str(tmp_path), "--", name)[0] == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_distribution_with_a_pass_a_layer_and_models_is_installed_and_used(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    assert invoke("blur-pool", "-o", str(source))[0] == 0
    (source / "blur_pool.py").write_text(FILES["blur_pool.py"])
    (source / "their_models.py").write_text(
        "from types import SimpleNamespace\nimport timm\n\n"
        "def create(name, **kwargs):\n"
        "    if not name.startswith('theirs:'):\n        raise ValueError(name)\n"
        "    return SimpleNamespace(model=timm.create_model(name.removeprefix('theirs:'), **kwargs))\n"
    )
    project = (source / "pyproject.toml").read_text().replace('["blur_pool"]', '["blur_pool", "their_models"]')
    (source / "pyproject.toml").write_text(
        f'{project}\n[project.entry-points."rewriter.models"]\ntheirs = "their_models:create"\n'
    )
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    done = python(tmp_path, *pip, str(source))
    assert done.returncode == 0, done.stderr
    listed = json.loads(python(site, "-m", "rewriter", "passes", "--json").stdout)
    assert "blur-pool" in [item["name"] for item in listed]
    saved = tmp_path / "saved"
    code = f"""
import rewriter, timm
model = rewriter.rewrite(timm.create_model("resnet18", num_classes=3), "blur-pool", input_size=64)
rewriter.save(model, {str(saved)!r}, recipe={{"model": "theirs:resnet18", "kwargs": {{"num_classes": 3}}}})
"""
    done = python(site, "-c", code)
    assert done.returncode == 0, done.stderr
    again = f"import rewriter; print(rewriter.report(rewriter.load({str(saved)!r})).applied[0].pass_name)"
    done = python(site, "-c", again)  # in a process that has imported neither the pass nor its layer
    assert done.stdout.strip() == "blur-pool", done.stderr
    unasked = "import rewriter, timm; print([n for n, _ in rewriter.plan(timm.create_model('test_resnet')).passes])"
    assert "blur-pool" not in python(site, "-c", unasked).stdout
    given = f"import rewriter, timm; rewriter.load({str(saved)!r}, timm.create_model('resnet18', num_classes=3))"
    without = python(tmp_path, "-c", given)
    assert without.returncode == 1 and "provides the layer 'blur-pool/blur'" in without.stderr
