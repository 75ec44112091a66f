"""Models and losses of one's own on the command line, and ``rewriter check``."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import flat, run

import rewriter

CODE = """
import torch
from torch import nn
from beside import Block


class Net(nn.Module):
    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3), Block(p)

    def forward(self, x):
        return self.block(self.stem(x)).mean((2, 3))


def make(p: float = 0.2) -> nn.Module:
    return Net(p)


def with_inputs():
    return Net(), torch.zeros(2, 3, 16, 16)


def entropy(x, target):
    return -(target * torch.log(torch.sigmoid(x))).mean()


def loss():
    return entropy, (torch.randn(2, 3, requires_grad=True), torch.rand(2, 3))


def number():
    return 3


ready = Net()
"""
BESIDE = """
from torch import nn


class Block(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.norm1, self.conv1, self.drop = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Dropout(p)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.drop(self.conv1(self.norm1(x).relu()))
        return x + self.conv2(self.norm2(y).relu())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "nets.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "beside.py").write_text(textwrap.dedent(BESIDE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("nets", "beside"):
            del sys.modules[name]


class TestSubjects:
    @pytest.mark.parametrize(
        "subject",
        [
            "nets.py:make --input-size 16",
            "nets:make --input-size 16",
            "nets.py:with_inputs",
            "nets:ready --input-size 16",
        ],
    )
    def test_code_of_the_users_is_planned(self, folder: Path, subject: str) -> None:
        done = run("plan", *subject.split(), "--pass", "dropout", "--diff")
        assert done.exit_code == 0, done.stderr
        assert "move drop before conv2" in flat(done.stdout) and "beside.Block.forward" in done.stdout

    def test_a_factory_gets_the_options(self, folder: Path) -> None:
        done = run("check", "nets.py:make", "--input-size", "16", "-k", "p=0", "--select", "RW02", "--json")
        assert [finding["active"] for finding in json.loads(done.stdout)] == [False]

    def test_a_loss_is_a_subject(self, folder: Path) -> None:
        done = run("plan", "nets.py:loss", "--pass", "numeric-safety")
        assert done.exit_code == 0 and "logsigmoid(x) instead of" in flat(done.stdout)

    def test_what_is_written_names_no_code_and_loads_into_a_model_of_it(self, folder: Path) -> None:
        done = run("rewrite", "nets.py:with_inputs", "--pass", "dropout", "-o", "out")
        assert done.exit_code == 0, done.stderr
        assert json.loads((folder / "out" / "recipe.json").read_text())["model"] is None
        import nets

        assert len(rewriter.report(rewriter.load(folder / "out", nets.Net())).applied) == 1

    def test_a_directory_is_a_subject(self, folder: Path) -> None:
        assert run("rewrite", "test_resnet", "-k", "drop_rate=0.2", "-o", "saved").exit_code == 0
        done = run("check", "saved", "--input-size", "64", "--select", "RW02", "--json")
        assert done.exit_code == 0 and json.loads(done.stdout) == []

    @pytest.mark.parametrize(
        ("subject", "message"),
        [
            ("nets.py:nothing", "there is no 'nothing' in it; it defines"),
            ("nothing.py:make", "there is no file nothing.py"),
            ("nothing:make", "there is no module 'nothing' here, and it is none of timm:NAME"),
            ("nets.py:number", r"expected a model, or (model, example_inputs), found int"),
            ("nets.py:make -k q=1", "TypeError in make(q=1)"),
            ("nets.py:make --pretrained", "--pretrained is for models of libraries"),
            ("nosuchmodel", "your own is file.py:factory"),
        ],
    )
    def test_a_subject_that_cannot_be_made_is_refused(self, folder: Path, subject: str, message: str) -> None:
        done = run("plan", *subject.split(), "--input-size", "16")
        assert done.exit_code == 1 and message in flat(done.stderr)
        assert run("check", *subject.split(), "--input-size", "16").exit_code == 2

    def test_a_file_with_the_name_of_a_library_does_not_hide_it(self, folder: Path) -> None:
        timm = sys.modules.get("timm")
        (folder / "timm.py").write_text(CODE)
        assert run("plan", "timm.py:make", "--input-size", "16", "--pass", "dropout").exit_code == 0
        assert sys.modules.get("timm") is timm


class TestCheck:
    def test_faults_end_it_with_one_and_notes_with_zero(self, folder: Path) -> None:
        done = run("check", "nets.py:with_inputs")
        assert done.exit_code == 1
        assert f"{folder}/beside.py:12: RW0201 [warning] block: dropout out of its place" in done.stdout
        assert run("check", "nets.py:with_inputs", "--ignore", "RW02").exit_code == 0
        assert run("check", "nets.py:make", "-k", "p=0", "--input-size", "16").exit_code == 0, "inactive"

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit"])
    def test_a_default_transformer_has_no_faults(self, name: str) -> None:
        done = run("check", name, "--json")
        found = json.loads(done.stdout)
        assert done.exit_code == 0 and found and not any(f["active"] and f["severity"] != "note" for f in found)

    def test_files_are_named_from_the_repository_on(self, folder: Path) -> None:
        text = run("check", "nets.py:with_inputs", "--format", "github", "--select", "RW02").stdout
        assert text.startswith("::warning file=beside.py,line=12,")
        log = json.loads(run("check", "nets.py:with_inputs", "--format", "sarif", "--select", "RW02").stdout)
        (result,) = log["runs"][0]["results"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"] == {"uri": "beside.py", "uriBaseId": "%SRCROOT%"}

    def test_the_diff_is_that_of_what_was_found(self, folder: Path) -> None:
        done = run("check", "nets.py:with_inputs", "--diff")
        assert (
            "+        y = self.conv1(self.norm1(x).relu())" in done.stdout
            and "stochastic" not in done.stdout.split("---")[1]
        )

    def test_fix_writes_a_model_without_the_fault(self, folder: Path) -> None:
        done = run("check", "nets.py:with_inputs", "--fix", "-o", "fixed")
        assert "written to fixed: dropout 1" in flat(done.stdout) and done.exit_code == 1
        import nets

        model = rewriter.load(folder / "fixed", nets.Net())
        assert not rewriter.check(model, select="RW02", input_size=16)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("nets.py:make --fix", "give -o DIRECTORY"),
            ("nets.py:make --json --format text", "--json is --format json"),
            ("nets.py:make --select RW99 --input-size 16", "'RW99' is no code"),
            ("", "SUBJECT: give one, or set subject"),
        ],
    )
    def test_wrong_usage_ends_with_two(self, folder: Path, arguments: str, message: str) -> None:
        done = run("check", *arguments.split())
        assert done.exit_code == 2 and message in flat(done.stderr)


class TestConfiguration:
    def set(self, folder: Path, text: str) -> None:
        (folder / "pyproject.toml").write_text(textwrap.dedent(text))

    def test_check_alone_does_what_the_project_has_set(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set(
            folder,
            """
            [tool.rewriter]
            subject = "nets.py:make"
            input-size = 16
            model-kwargs = ["p=0.3"]
            select = ["RW02"]
            """,
        )
        (found,) = json.loads(run("check", "--json").stdout)
        assert found["code"] == "RW0201"
        assert json.loads(run("check", "--json", "--select", "RW03").stdout)[0]["code"] == "RW0301", (
            "the option decides"
        )
        assert run("check", "--select", "RW02", "-k", "p=0").exit_code == 0

    def test_codes_are_ignored_in_parts_of_the_model(self, folder: Path) -> None:
        self.set(
            folder,
            """
            [tool.rewriter]
            subject = "nets.py:with_inputs"
            [tool.rewriter.per-path-ignores]
            "block" = ["RW02"]
            """,
        )
        done = run("check", "--json")
        assert done.exit_code == 0 and {found["code"] for found in json.loads(done.stdout)} >= {"RW0601"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[tool.rewriter]\nselct = []", "has no key 'selct'; did you mean 'select'"),
            ("[tool.rewriter]\nselect = 3", "select: expected a list of texts, found 3"),
            ("[tool.rewriter]\nsubject = []", "subject: expected a text, found []"),
            ("[tool.rewriter]\nper-path-ignores = 1", "expected a table of module paths and codes"),
            ("[tool", "is no TOML"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, folder: Path, text: str, message: str) -> None:
        (folder / "pyproject.toml").write_text(text)
        done = run("check", "nets.py:with_inputs")
        assert done.exit_code == 2 and message in flat(done.stderr)

    def test_another_file_can_be_named(self, folder: Path) -> None:
        (folder / "lint.toml").write_text('[tool.rewriter]\nsubject = "nets.py:with_inputs"\nignore = ["RW"]\n')
        done = run("check", "--config", "lint.toml", "--json")
        assert done.exit_code == 0 and json.loads(done.stdout) == []
        assert "no such file" in flat(run("check", "--config", "none.toml").stderr).lower()


class TestPlansAndDirectories:
    def test_a_reviewed_plan_is_applied_as_it_is(self, folder: Path) -> None:
        made = run("plan", "nets.py:with_inputs", "--pass", "dropout", "--json").stdout
        (folder / "plan.json").write_text(made)
        done = run("rewrite", "nets.py:with_inputs", "--plan", "plan.json", "-o", "out")
        assert done.exit_code == 0, done.stderr
        assert "a fresh Net: its code is yours" in flat(done.stdout)
        (plan,) = json.loads((folder / "out" / "plan.json").read_text())
        assert plan["sites"] == json.loads(made)["sites"]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ("--plan none.json", 1, "none.json cannot be read"),
            ("--plan nets.py", 1, "nets.py"),
            ("--plan plan.json --pass dropout", 2, "--plan says what is done"),
        ],
    )
    def test_a_plan_that_is_none_is_refused(self, folder: Path, arguments: str, code: int, message: str) -> None:
        done = run("rewrite", "nets.py:with_inputs", *arguments.split(), "-o", "out")
        assert done.exit_code == code and message in flat(done.stderr) and not (folder / "out").exists()

    def test_a_directory_is_shown_without_making_the_model(self, folder: Path) -> None:
        assert run("rewrite", "nets.py:with_inputs", "--pass", "dropout", "-o", "out").exit_code == 0
        (folder / "nets.py").unlink()
        done = run("show", "out")
        assert done.exit_code == 0, done.stderr
        for words in ("nets.Net", "an original that is given", "move drop before conv2", "eval output holds"):
            assert words in flat(done.stdout)
        shown = json.loads(run("show", "out", "--json").stdout)
        assert shown["class"] == "nets.Net" and len(shown["plans"]) == len(shown["report"]) == 1

    def test_another_directory_is_refused(self, folder: Path) -> None:
        done = run("show", str(folder))
        assert done.exit_code == 1 and "is incomplete" in flat(done.stderr)
