"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from helpers import interruptible
from typer.testing import CliRunner, Result

import rewriter
from rewriter.cli import commands as cli
from rewriter.measurement.catalogue import CATALOGUE
from rewriter.measurement.measure import MEASUREMENTS

SMALL = ("test_vit", "-k", "proj_drop_rate=0.1,img_size=(64,64)")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.application(), list(arguments))


def run_process(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rewriter.cli.commands import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **settings)


def flat(text: str) -> str:
    """Without line breaks, which depend on the width."""
    return " ".join(text.split())


class TestPasses:
    def test_table(self) -> None:
        done = run("passes")
        assert done.exit_code == 0
        for words in ("dropout", "head_p: float | None = None", "eval output bit for bit", "UAI 2023"):
            assert words in flat(done.stdout)

    def test_json(self) -> None:
        (found,) = [item for item in json.loads(run("passes", "--json").stdout) if item["name"] == "dropout"]
        assert found["options"][0] == {"name": "p", "type": "float | None", "default": None}
        assert found["contract"]["eval_output"] is True and found["paper"] and found["summary"]
        assert found["default"] is True and "RW0201" in found["codes"]

    def test_says_what_runs_by_default_and_how_the_others_are_run(self) -> None:
        found = json.loads(run("passes", "--json").stdout)
        by_default = [item["name"] for item in found if item.get("default")]
        assert by_default == sorted(by_default) and len(by_default) == 6 and found[0]["default"]
        measured = [item["name"] for item in found if item["kind"] == "measurement"]
        assert measured == list(MEASUREMENTS) == list(CATALOGUE)
        text = flat(run("passes").stdout)
        for words in ("runs by default", "when named: --pass numeric-safety", "rewriter measure NAME dead-pixels"):
            assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan resnet18 --nope --json", "No such option"),
        ("plan --json", "Missing argument"),
        ("plan resnet18 --input-size x --json", "expected 224"),
        ("nosuchcommand --json", "No such command"),
    ],
)
def test_wrong_usage_is_one_json_document_for_machines(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rewriter", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and message in err
    assert json.loads(out)["error"]["type"] == "UsageError" and message in json.loads(out)["error"]["message"]


class TestPlan:
    def test_first_sight(self) -> None:
        done = run("plan", "resnet18", "--model-kwargs", "drop_rate=0.2", "--diff")
        assert done.exit_code == 0, done.stderr
        for words in ("resnet18", "11.7 M parameters", "2 x 3 x 224 x 224", "to edit: 1 place", "move dropout()"):
            assert words in flat(done.stdout)
        assert "left alone: 9 places - nothing-to-move: 8 layer{1-4}.{0,1} (8) residual branch" in flat(done.stdout)
        assert "-        x = self.global_pool(x)\n" in done.stdout

    def test_no_diff_unasked(self) -> None:
        assert "@@" not in run("plan", *SMALL).stdout

    def test_json_is_a_plan(self) -> None:
        done = run("plan", *SMALL, "--json")
        made = rewriter.Plan.from_json(done.stdout)
        model = timm.create_model("test_vit", proj_drop_rate=0.1, img_size=(64, 64))
        assert made == rewriter.Plan.from_json(rewriter.plan(model, input_size=(3, 64, 64)).to_json())

    def test_without_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        devices = []
        original = rewriter.plan

        def watched(model: torch.nn.Module, *arguments: Any, **settings: Any) -> rewriter.Plan:
            devices.append(next(model.parameters()).device.type)
            return original(model, *arguments, **settings)

        monkeypatch.setattr(rewriter, "plan", watched)
        assert run("plan", *SMALL).exit_code == 0
        assert devices == ["meta"]

    @pytest.mark.parametrize(
        ("size", "expected"),
        [("96", [96, 96]), ("96,128", [96, 128]), ("3, 96 ,128", [96, 128])],
    )
    def test_input_size(self, size: str, expected: list[int]) -> None:
        done = run("plan", "resnet18", "--input-size", size)
        assert done.exit_code == 0, done.stderr
        assert f"2 x 3 x {expected[0]} x {expected[1]}" in flat(done.stdout)

    def test_channels(self) -> None:
        assert "2 x 1 x 96 x 96" in flat(run("plan", "resnet18", "-k", "in_chans=1", "--input-size", "96").stdout)

    def test_several_options(self) -> None:
        done = run(
            "plan", "test_vit", "-k", "proj_drop_rate=0.1, img_size=(64,64)", "-k", "global_pool=avg drop_rate=.2"
        )
        assert done.exit_code == 0, done.stderr
        assert "proj_drop_rate=0.1, img_size=(64, 64), global_pool='avg', drop_rate=0.2" in flat(done.stdout)

    def test_pass_with_options(self) -> None:
        made = json.loads(run("plan", *SMALL, "--pass", "dropout:p=0.3,head_p=0.2", "--json").stdout)
        assert made["passes"] == [{"dropout": {"p": 0.3, "head_p": 0.2}}]

    @pytest.mark.slow
    def test_options_of_passes_as_people_write_them(self) -> None:
        made = run("plan", "seresnet18", "--pass", "stochastic-pooling:squeeze=true,scale=none", "--json").stdout
        assert dict(rewriter.Plan.from_json(made).passes)["stochastic-pooling"]["squeeze"] is True
        assert len(rewriter.Plan.from_json(made).sites) == 9

    @pytest.mark.slow
    def test_selection(self) -> None:
        made = json.loads(
            run("plan", *SMALL, "--only", "blocks.0", "--only", "blocks.1", "--skip", "*.mlp", "--json").stdout
        )
        assert {site["path"].rsplit(".", 1)[0] for site in made["sites"]} <= {"blocks.0", "blocks.1", "blocks"}
        assert made["request"]["only"] == ["blocks.0", "blocks.1"] and made["request"]["skip"] == ["*.mlp"]

    @pytest.mark.slow
    def test_torchvision(self) -> None:
        done = run("plan", "torchvision:resnet18", "--pass", "dropout:p=0.1", "--input-size", "64")
        assert done.exit_code == 0, done.stderr
        assert "torchvision.models.resnet.ResNet" in done.stdout

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("torchvision:fasterrcnn_resnet50_fpn", "on 2 of (3 x 64 x 64), 2 of (boxes, labels)"),
            ("torchvision:r3d_18", "on 2 x 3 x 8 x 64 x 64"),
            ("torchvision:raft_small", "on 2 x 3 x 128 x 128, 2 x 3 x 128 x 128"),
        ],
    )
    def test_inputs_of_its_own(self, name: str, words: str) -> None:
        done = run("plan", name, "--pass", "dropout:p=0.1")
        assert done.exit_code == 0, done.stderr
        assert words in flat(done.stdout) and "insert dropout after" in flat(done.stdout)


@pytest.mark.slow
class TestRewrite:
    def test_first_sight(self, tmp_path: Path) -> None:
        arguments = ("--model-kwargs", "drop_rate=0.2", "--input-size", "64", "-o", str(tmp_path / "out"))
        done = run("rewrite", "resnet18", *arguments)
        assert done.exit_code == 0, done.stderr
        order = [
            "resnet18", "traced", "edited: 1 place", "change of source", "left alone: 9 places",
            "verified on this model", "bit-identical", "time: create", f'rewriter.load("{tmp_path.as_posix()}/out")',
        ]  # fmt: skip
        places = [done.stdout.find(words) for words in order]
        assert -1 not in places and places == sorted(places)
        model = rewriter.load(tmp_path / "out")
        assert len(rewriter.report(model).applied) == 1 and rewriter.report(model).verified is True

    def test_without_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        done = run("rewrite", *SMALL)
        assert done.exit_code == 0 and "verified on this model" in done.stdout and "@@" in done.stdout
        assert list(tmp_path.iterdir()) == []

    def test_no_verify(self) -> None:
        done = run("rewrite", *SMALL, "--no-verify")
        assert done.exit_code == 0 and "not verified" in done.stdout

    def test_json(self, tmp_path: Path) -> None:
        done = run("rewrite", *SMALL, "--json", "--skip", "blocks.0", "-o", str(tmp_path / "out"))
        found = json.loads(done.stdout)
        assert found["verified"] is True and found["directory"] == str(tmp_path / "out")
        assert found["applied"] == len(found["report"][0]["plan"]["sites"]) > 0
        assert found["kwargs"] == {"proj_drop_rate": 0.1, "img_size": [64, 64]}
        recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
        assert recipe["rewrites"][0]["skip"] == ["blocks.0"]
        assert recipe["kwargs"] == {"proj_drop_rate": 0.1, "img_size": [64, 64]}

    def test_in_a_fresh_process(self, tmp_path: Path) -> None:
        done = run_process("rewrite", *SMALL, "-o", "out", "--no-verify", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        snippet = done.stdout[done.stdout.index("import rewriter") :]
        code = "\n".join(line.strip() for line in snippet.splitlines()) + "\nprint(len(rewriter.report(model).applied))"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr
        assert int(loaded.stdout) > 0

    def test_piped_output_is_narrow_and_plain(self) -> None:
        done = run_process("rewrite", "resnet18", "-k", "drop_rate=0.2", "--no-verify")
        assert done.returncode == 0 and done.stderr == ""
        prose = done.stdout[: done.stdout.index("change of source")] + done.stdout[done.stdout.index("left alone") :]
        assert max(len(line) for line in prose.splitlines()) <= 80
        assert "\x1b" not in done.stdout
        assert not any(line != line.rstrip() for line in done.stdout.splitlines())

    def test_checkpoint(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        state = timm.create_model("test_vit", proj_drop_rate=0.1, img_size=(64, 64)).state_dict()
        safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
        torch.save(
            {"epoch": 3, "model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "weights.pt"
        )
        for file in ("weights.safetensors", "weights.pt"):
            done = run(
                "rewrite", *SMALL, "--checkpoint", str(tmp_path / file), "-o", str(tmp_path / "out"), "--no-verify"
            )
            assert done.exit_code == 0, done.stderr
            loaded = rewriter.original_state_dict(rewriter.load(tmp_path / "out"))
            assert all(torch.equal(loaded[key], value) for key, value in state.items())

    def test_pretrained_structure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name is kept in the recipe only where it builds the structure without the weights."""
        from rewriter import zoo

        create = zoo.create

        def without_download(name: str, *, pretrained: bool = False, **kwargs: Any) -> zoo.Entry:
            return create(name, **kwargs)

        monkeypatch.setattr(zoo, "create", without_download)
        done = run("rewrite", *SMALL, "--pretrained", "-o", str(tmp_path / "same"), "--no-verify")
        assert done.exit_code == 0, done.stderr
        assert rewriter.load(tmp_path / "same") is not None

        def other_structure(name: str, *, pretrained: bool = False, **kwargs: Any) -> zoo.Entry:
            entry = create(name, **(kwargs | {"depth": 2} if pretrained else kwargs))
            return dataclasses.replace(entry, options=kwargs)

        monkeypatch.setattr(zoo, "create", other_structure)
        done = run("rewrite", *SMALL, "--pretrained", "-o", str(tmp_path / "other"), "--no-verify")
        assert done.exit_code == 0, done.stderr
        assert "original)" in done.stdout
        assert json.loads((tmp_path / "other" / "recipe.json").read_text())["model"] is None


class TestErrors:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "kind", "words"),
        [
            (("plan", "resnet81"), "UnknownModel", "resnet18"),
            (("plan", "smp:unet:x"), "UnknownModel", "expected"),
            (("plan", "resnet18", "-k", "no_such=1"), "CreationError", "no_such"),
            (("plan", "resnet18", "--pass", "dropuot"), "SelectorError", "dropout"),
            (("plan", "resnet18", "--pass", "dropout:q=1"), "SelectorError", "no option 'q'"),
            (("plan", "resnet18", "--pass", "dropout:p=7"), "SelectorError", "drop rate"),
            (("plan", "resnet18", "--pass", "dropout:p=high"), "SelectorError", "drop rate"),
            (("plan", "resnet18", "--only", "layer9"), "SelectorError", "layer"),
            (("plan", "resnet18", "--checkpoint", "no_such.pt"), "StorageError", "no such file"),
            (("plan", "resnet18", "--input-size", "9,64,64"), "TraceError", "could not be run"),
            (("rewrite", "resnet18", "-o", "."), "StorageError", "not empty"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_refusals(self, arguments: tuple[str, ...], kind: str, words: str) -> None:
        done = run(*arguments)
        assert done.exit_code == 1
        assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
        assert words in done.stderr
        done = run(*arguments, "--json")
        assert done.exit_code == 1
        error = json.loads(done.stdout)["error"]
        assert error["type"] == kind and words in error["message"]

    @pytest.mark.slow
    def test_checkpoint_that_does_not_fit(self, tmp_path: Path) -> None:
        state = timm.create_model("test_vit").state_dict()
        state["extra"] = state.pop("norm.weight")
        torch.save(state, tmp_path / "weights.pt")
        done = run("rewrite", "test_vit", "--checkpoint", str(tmp_path / "weights.pt"))
        assert done.exit_code == 1
        assert "missing: norm.weight; unexpected: extra" in done.stderr and "-k" not in done.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            ("test_resnet", {"in_chans": 1}, "-k in_chans=1"),
            ("test_resnet", {"in_chans": 4, "num_classes": 7}, "-k num_classes=7 -k in_chans=4"),
            ("torchvision:mobilenet_v2", {"num_classes": 7}, "-k num_classes=7"),
            ("smp:unet-resnet18", {"in_channels": 1, "classes": 3}, "-k classes=3 -k in_channels=1"),
        ],
    )
    def test_checkpoint_made_with_other_options(
        self, name: str, options: dict[str, int], told: str, tmp_path: Path
    ) -> None:
        from rewriter import zoo

        path = tmp_path / "weights.pt"
        torch.save(zoo.create(name, **options).model.state_dict(), path)
        done = run("plan", name, "--checkpoint", str(path))
        assert done.exit_code == 1 and done.stderr.endswith(f". They fit a model made with {told}\n")
        assert run("plan", name, "--checkpoint", str(path), *told.split()).exit_code == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            ("test_resnet", ("-k", "num_classes=4"), "fc.weight, fc.bias"),
            ("torchvision:fcn_resnet50", ("-k", "num_classes=4", "-k", "aux_loss=True"), "aux_classifier.4.weight"),
        ],
    )
    def test_checkpoint_of_1000_classes_for_another_number(
        self, name: str, options: tuple[str, ...], told: str, tmp_path: Path
    ) -> None:
        from rewriter import zoo

        own = {"aux_loss": True} if "fcn" in name else {}
        state = zoo.create(name, num_classes=1000, **own).model.state_dict()
        torch.save(state, tmp_path / "weights.pt")
        out = tmp_path / "out"
        common = ("--checkpoint", str(tmp_path / "weights.pt"), "--input-size", "64", "--no-verify")
        done = run("rewrite", name, *options, *common, "--pass", "dropout", "-o", str(out))
        assert done.exit_code == 0, done.stderr
        shown = " ".join(done.stdout.split())
        assert "with a new classifier (" in shown and told in shown and "the checkpoint has 1000 classes" in shown
        loaded = rewriter.original_state_dict(rewriter.load(out))
        new = {key for key, value in loaded.items() if value.shape != state[key].shape}
        assert new and all(torch.equal(loaded[key], value) for key, value in state.items() if key not in new)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("plan",),
            ("no-such-command",),
            ("plan", "resnet18", "--no-such-option"),
            ("plan", "resnet18", "-k", "drop_rate"),
            ("plan", "resnet18", "-k", "=1"),
            ("plan", "resnet18", "-k", "drop_rate="),
            ("plan", "resnet18", "--input-size", "big"),
            ("plan", "resnet18", "--input-size", "0"),
            ("plan", "resnet18", "--input-size", "1,3,224,224"),
            ("plan", "resnet18", "--pass", "dropout:0.1"),
            ("plan", "resnet18", "--preserve", "some"),
            ("plan", "resnet18", "--pretrained", "--checkpoint", "x.pt"),
        ],
        ids=" ".join,
    )
    def test_wrong_usage(self, arguments: tuple[str, ...]) -> None:
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stdout == "" and done.stderr

    def test_libraries_that_print_do_not_spoil_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from rewriter import zoo

        create = zoo.create

        def talkative(*arguments: Any, **settings: Any) -> zoo.Entry:
            print("welcome")
            return create(*arguments, **settings)

        monkeypatch.setattr(zoo, "create", talkative)
        done = run("plan", *SMALL, "--json")
        json.loads(done.stdout)
        assert "welcome" in done.stderr

    def test_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: Any, **settings: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(rewriter, "plan", interrupt)
        assert run("plan", *SMALL).exit_code == 130

    @pytest.mark.slow
    @pytest.mark.skipif(os.name != "posix", reason="signals")
    def test_interrupt_of_a_process(self, tmp_path: Path) -> None:
        """Ctrl-C while weights are written leaves nothing behind."""
        code = (
            "import safetensors.torch as s, time\n"
            "s.save_file = lambda *a, **k: (print('now', flush=True), time.sleep(60))\n"
            "from rewriter.cli.commands import main\nmain()"
        )
        command = [sys.executable, "-c", code, "rewrite", *SMALL, "--no-verify", "-o", "out"]
        with subprocess.Popen(interruptible(command), stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
            assert process.stdout is not None and process.stdout.readline() == "now\n"
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert list(tmp_path.iterdir()) == []


class TestMain:
    def test_version(self) -> None:
        done = run("--version")
        assert done.exit_code == 0 and done.stdout.startswith(f"rewriter {rewriter.__version__} (torch ")

    def test_help(self) -> None:
        for arguments in (("--help",), ("plan", "-h"), ("rewrite", "-h"), ("passes", "-h")):
            done = run(*arguments)
            assert done.exit_code == 0 and "Usage" in done.stdout

    @pytest.mark.parametrize("library", ["typer", "rich", "timm"])
    def test_core_only_install(self, library: str) -> None:
        code = f"import sys; sys.modules[{library!r}] = None; from rewriter.cli.commands import main; main()"
        done = subprocess.run([sys.executable, "-c", code, "passes"], capture_output=True, text=True)
        assert done.returncode == 1
        assert 'pip install "rewriter[cli]"' in done.stderr and library in done.stderr and done.stdout == ""
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("passes",), ("--help",), ("plan", "nosuchmodel", "--json")], ids=" ".join)
def test_output_that_cannot_be_written_is_one_line_and_an_exit_code(arguments: tuple[str, ...], buffered: str) -> None:
    code = "from rewriter.cli.commands import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: the output cannot be written: No ")
    assert "Traceback" not in done.stderr
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "error: standard output is closed\n")


@pytest.mark.slow
def test_a_reader_that_goes_away_is_told_nothing() -> None:
    command = [sys.executable, "-c", "from rewriter.cli.commands import main; main()", "passes"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_errors_do_not_go_to_standard_output_where_there_is_no_other() -> None:
    code = "from rewriter.cli.commands import main; main()"
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code, "plan", "nosuchmodel"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_trained_weights_are_no_option_of_the_model() -> None:
    done = run("plan", "resnet18", "--model-kwargs", "pretrained=True")
    assert done.exit_code == 2 and "give --pretrained" in flat(done.output.replace("│", ""))


@pytest.mark.slow
def test_a_plan_measures_where_a_pass_needs_values_as_the_rewrite_will() -> None:
    model = ("resnet18", "-k", "norm_layer=groupnorm", "--input-size", "64")
    done = run("plan", *model, "--pass", "group-count:rule=measured-isometry")
    assert done.exit_code == 0, done.stderr
    assert "measured on" in flat(done.stdout) and "closed form" not in flat(done.stdout)
    done = run("plan", *model, "--pass", "group-count")
    assert "expected over 8 draws of the weights" in flat(done.stdout)
