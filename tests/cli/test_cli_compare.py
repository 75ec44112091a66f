"""``rewriter compare``: what it prints where, its exit codes, several processes, and going on after an interrupt."""

from __future__ import annotations

import json
import os
import pty
import re
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

from rewriter.cli import commands as cli
from rewriter.cli import model as cli_model
from rewriter.comparison.result import Comparison
from rewriter.comparison.training import train

pytestmark = pytest.mark.slow

COMMAND = (
    "compare", "test_vit", "--pass", "dropout:p=0.1", "--preserve", "nothing", "--data", "digits",
    "-r", "batch_size=16,train_images=32,test_images=40", "--seeds", "2", "--epochs", "2", "--device", "cpu",
)  # fmt: skip
NO_DATA = ("--data", "imagefolder:/nowhere")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.application(), list(arguments))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from rewriter.cli.commands import main; main()", *arguments]


def interrupt(*arguments: Any, **options: Any) -> Any:
    """Ctrl-C just there."""
    raise KeyboardInterrupt


def without_processes(text: str) -> Any:
    data = json.loads(text)
    data.pop("timing", None)
    data["training"]["environment"].pop("processes")
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Directory and JSON of a comparison that nothing interrupted."""
    place = tmp_path_factory.mktemp("whole") / "runs"
    done = run(*COMMAND, "--output", str(place), "--json")
    assert done.exit_code == 0, done.output
    return place, done.stdout


class TestOutput:
    def test_json_and_files(self, whole: tuple[Path, str]) -> None:
        place, text = whole
        found = Comparison.from_json(text)
        assert found.model == "test_vit" and found.training is not None and len(found.training.runs) == 4
        names = {path.name for path in place.iterdir()}
        assert {"runs.jsonl", "runs.csv", "summary.md", "result.json"} <= names
        assert without_processes((place / "result.json").read_text()) == without_processes(text)
        assert any(name.endswith(".png") for name in names)

    def test_text(self, whole: tuple[Path, str]) -> None:
        done = run(*COMMAND, "--output", str(whole[0]))  # all runs are there
        assert done.exit_code == 0 and "verdict:" in done.stdout.splitlines()[1]
        assert "bit-identical" in done.stdout and done.stderr == f"all 4 runs are in {whole[0]}\n"

    def test_another_command_in_the_directory(self, whole: tuple[Path, str]) -> None:
        before = (whole[0] / "runs.jsonl").read_bytes()
        done = run(*COMMAND, "-r", "lr=0.5", "--output", str(whole[0]), "--json")
        assert done.exit_code == 1 and "lr is 0.5 now" in json.loads(done.stdout)["error"]["message"]
        assert "--restart" in done.stderr and (whole[0] / "runs.jsonl").read_bytes() == before

    def test_trained_weights_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        done = run("compare", "--pass", "dropout", "--json")
        assert done.exit_code == 0, done.stderr
        found = Comparison.from_json(done.stdout)
        assert found.trained is not None and found.trained.before == found.trained.after
        assert found.trained.before["top1"] >= 0.85 and len(found.trained.rows) == 20 and found.training is None
        assert found.verdict.sentence.startswith("the output in evaluation mode is bit-identical on 20 images; ")
        assert found.verdict.sentence.endswith("no training was compared")

    def test_reports_that_cannot_be_written(self, whole: tuple[Path, str]) -> None:
        summary = whole[0] / "summary.md"
        summary.unlink()
        summary.mkdir()
        try:
            done = run(*COMMAND, "--output", str(whole[0]), "--json")
        finally:
            summary.rmdir()
        assert done.exit_code == 1 and "summary.md" in done.stderr
        assert without_processes(done.stdout) == without_processes(whole[1])


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--data", "mnist6k"), "did you mean"),
            (("--data", "imagefolder:/nowhere"), "/nowhere"),
            (("--data", "torchvision:CIFAR11"), "CIFAR10"),
            (("--data", "torchvision:CIFAR10", "--root", "/nowhere"), "--download"),
            (("--data", ""), "unknown data"),
            (("--data", "photos", "--level", "training"), "test images only"),
            (("-r", "learning=1"), "no field 'learning'"),
            (("-r", "lr=-1"), "lr: expected a positive number"),
            (("-r", "optimizer=addam"), "addam"),
            (("-r", "mixed_precision=fp16"), "bf16"),
            (("-r", "batch_size=64"), "at least one batch of batch_size=64"),
            (("--device", "cuda"), "device"),
            (("--pass", "drop"), "dropout"),
            (("--checkpoint", "/nowhere.safetensors"), "/nowhere.safetensors"),
            # what is wrong with the model or the data is told after what can be known without them
            (("-k", "no_such=1", *NO_DATA), "no_such"),
            (("-k", "no_such=1", "--data", "mnist6k"), "did you mean"),
            (("-r", "learning=1", *NO_DATA), "no field 'learning'"),
            (("-r", "optimizer=addam", *NO_DATA), "addam"),
            (("--pass", "drop", *NO_DATA), "dropout"),
            (("--device", "nonsense", *NO_DATA), "device"),
            (("--checkpoint", "/nowhere.pt", *NO_DATA), "/nowhere.pt: no such file"),
        ],
    )
    def test_one_line(self, arguments: tuple[str, ...], words: str) -> None:
        if torch.accelerator.is_available() and ("cuda" in arguments or "mixed_precision=fp16" in arguments):
            pytest.skip("asks what a CPU says")
        done = run(*COMMAND, *arguments, "--json")
        assert done.exit_code == 1, done.output
        assert words in json.loads(done.stdout)["error"]["message"] and done.stderr.splitlines()[-1].startswith(
            "error:"
        )

    def test_the_name_of_the_model_before_data(self) -> None:
        done = run("compare", "resnet81", *NO_DATA)
        assert done.exit_code == 1 and "unknown model 'resnet81'" in done.stderr

    @pytest.mark.parametrize("arguments", [("--budget", "huge"), ("--seeds", "0"), ("-r", "lr"), ("--level", "x")])
    def test_usage(self, arguments: tuple[str, ...]) -> None:
        assert run(*COMMAND, *arguments).exit_code == 2

    def test_checkpoint_of_another_shape(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.safetensors"
        other = timm.create_model("test_vit", in_chans=1, num_classes=7)
        safetensors.torch.save_file(other.state_dict(), path)
        done = run(*COMMAND, "--checkpoint", str(path), "--input-size", "160")
        assert done.exit_code == 1 and "head.weight [7, 64] instead of [10, 64]" in done.stderr
        assert "They fit a model made with -k num_classes=7 -k in_chans=1; without that, num_classes=10" in done.stderr

    def test_checkpoint_of_other_classes_where_nothing_is_trained(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(timm.create_model("test_vit", in_chans=3, num_classes=7).state_dict(), path)
        done = run(*COMMAND, "--checkpoint", str(path), "--input-size", "160", "--level", "equivalence")
        assert done.exit_code == 1
        assert "They fit a model made with -k num_classes=7; without that, num_classes=10 is set" in done.stderr

    def test_weights_that_no_package_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        done = run("compare", "resnet10t", "--pretrained", "--pass", "dropout")
        assert done.exit_code == 1 and "resnet10t" in done.stderr and "--checkpoint" in done.stderr


def test_fine_tuning_from_a_checkpoint_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", in_chans=3, num_classes=1000).state_dict(), path)
    arguments = ["test_resnet" if item == "test_vit" else item for item in COMMAND]
    done = run(*arguments, "--checkpoint", str(path), "--input-size", "32", "--level", "training", "--json")
    assert done.exit_code == 0, done.stderr
    told = "training began with a new classifier (fc.weight, fc.bias): the checkpoint has 1000 classes"
    assert f"note: {told}\n" in done.stderr
    found = Comparison.from_json(done.stdout)
    assert found.training is not None and len(found.training.runs) == 4
    assert not any("do not begin with the same weights" in note for note in found.notes)


def test_fine_tuning_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    once = cli_model.read_checkpoint
    monkeypatch.setattr("rewriter.cli.model.read_checkpoint", lambda file: read.append(file) or once(file))
    torch.manual_seed(3)
    path = tmp_path / "weights.safetensors"
    model = timm.create_model("test_resnet", in_chans=3, num_classes=10)
    safetensors.torch.save_file(model.state_dict(), path)
    arguments = ["test_resnet" if item == "test_vit" else item for item in COMMAND]
    done = run(*arguments, "--checkpoint", str(path), "--input-size", "32", "--level", "training", "--json")
    assert done.exit_code == 0, done.stderr
    found = Comparison.from_json(done.stdout)
    assert found.training is not None and any("all seeds begin with the weights" in note for note in found.notes)
    assert len({run.epochs[0].test_loss for run in found.training.runs}) == 1
    assert read == [path]  # for all models of all seeds


class TestInterrupts:
    @pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
    def test_the_same_command_goes_on(self, sent: signal.Signals, whole: tuple[Path, str], tmp_path: Path) -> None:
        place = tmp_path / "runs"
        path = place / "runs.jsonl"
        arguments = (*COMMAND, "--output", str(place), "--json")
        with subprocess.Popen(
            interruptible(command(*arguments)), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            limit = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < limit:
                if path.exists() and path.read_bytes().count(b"\n") >= 2:
                    process.send_signal(sent)
                    break
                time.sleep(0.002)
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == (130 if sent is signal.SIGINT else -signal.SIGKILL), stderr
        assert not stdout
        lines = path.read_bytes().splitlines(keepends=True)
        assert 2 <= len(lines) < 5
        kept = len(lines) - 1
        if sent is signal.SIGINT:
            assert (
                f"interrupted: {kept} of 4 runs {'is' if kept == 1 else 'are'} finished and kept in {place}; " in stderr
            )
        with path.open("ab") as file:
            file.write(b'{"arm": "be')
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        assert f"{kept} of 4 runs " in done.stderr and f" in {place}, {4 - kept} to train\n" in done.stderr
        assert without_processes(done.stdout) == without_processes(whole[1])
        assert path.read_bytes().startswith(b"".join(lines)) and path.read_bytes().count(b"\n") == 5

    def test_restart(self, whole: tuple[Path, str], tmp_path: Path) -> None:
        (tmp_path / "runs.jsonl").write_bytes((whole[0] / "runs.jsonl").read_bytes())
        arguments = (*COMMAND, "-r", "lr=0.01", "--seeds", "1", "--output", str(tmp_path), "--level", "training")
        assert run(*arguments).exit_code == 1
        done = run(*arguments, "--restart")
        assert done.exit_code == 0 and (tmp_path / "runs.jsonl").read_bytes().count(b"\n") == 3
        first, *told = done.stderr.splitlines()
        assert first == "training 2 runs" and len(told) == 2
        for number, (line, arm) in enumerate(zip(told, ("before", "after"), strict=True), start=1):
            assert re.fullmatch(rf"run {number} of 2: {arm}, seed 0, [\d.]+ s, top1 [\d.]+", line)

    def test_before_training(self, whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rewriter.data.open_source", interrupt)
        for arguments, told in (
            ((), "nothing was kept: give -o DIRECTORY to keep finished runs"),
            (("-o", str(tmp_path / "new")), "there is no finished run to keep yet"),
            (("-o", str(whole[0])), f"4 finished runs in {whole[0]}"),
        ):
            done = run(*COMMAND, *arguments, "--json")
            assert done.exit_code == 130 and done.stdout == "" and done.stderr == f"interrupted; {told}\n"
        assert not (tmp_path / "new").exists()

    def test_in_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = (*COMMAND, "--epochs", "1", "--level", "training")
        monkeypatch.setattr("rewriter.comparison.experiment.train", interrupt)
        done = run(*arguments, "-o", str(tmp_path / "new"))
        assert done.exit_code == 130
        assert done.stderr.splitlines()[-1] == "interrupted: 0 of 4 runs are finished, so nothing was kept"
        trained: list[Any] = []
        monkeypatch.setattr(
            "rewriter.comparison.experiment.train",
            lambda *given: interrupt() if trained else trained.append(given) or train(*given),
        )
        done = run(*arguments)
        assert done.exit_code == 130 and done.stderr.splitlines()[-1] == (
            "interrupted: 1 of 4 runs is finished, none is kept: give -o DIRECTORY to keep finished runs"
        )
        trained.clear()
        done = run(*arguments, "-o", str(tmp_path), "--restart")
        assert done.stderr.splitlines()[-1] == (
            f"interrupted: 1 of 4 runs is finished and kept in {tmp_path}; the same command without --restart goes on "
            "from there"
        )


class TestProcesses:
    def torchrun(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [*start, "--no-python", *command(*arguments)], env=ENVIRONMENT, text=True, capture_output=True, timeout=150
        )

    def test_two_agree_with_one(self, whole: tuple[Path, str], tmp_path: Path) -> None:
        done = self.torchrun(*COMMAND, "--output", str(tmp_path), "--json")
        assert done.returncode == 0, done.stderr
        assert without_processes(done.stdout) == without_processes(whole[1])
        assert json.loads(done.stdout)["training"]["environment"]["processes"] == 2
        assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 5
        told = [line for line in done.stderr.splitlines() if line.startswith(("training", "run "))]
        assert told[0] == "training 4 runs in 2 processes; the first tells of its own 2"
        assert [line.partition(",")[0] for line in told[1:]] == [
            "run 1 of 2 of the first process: before", "run 2 of 2 of the first process: after",
        ]  # fmt: skip

    def test_an_error_of_one_ends_all(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "import os, timm, rewriter, torch\n"
            "rank = os.environ['RANK']\n"
            "def make():\n"
            "    return timm.create_model('test_resnet', in_chans=1, num_classes=10)\n"
            "def optimizer(model):\n"
            "    if rank == '1':\n"
            "        raise MemoryError('no more of it')\n"
            "    return torch.optim.SGD(model.parameters(), 0.1)\n"
            "for p in (0.1, 0.2):\n"
            "    try:\n"
            "        rewriter.compare(make, lambda m: m, 'digits', levels=['training'], seeds=2, epochs=1, hflip=p,\n"
            "                         batch_size=16, train_images=32, test_images=40, input_size=32, device='cpu',\n"
            f"                         directory={str(tmp_path)!r}, progress=False, optimizer=optimizer)\n"
            "    except (MemoryError, rewriter.ComparisonError) as error:\n"
            "        told = str(error).partition('comparison: ')[2] or error\n"
            "        os.write(1, f'rank {rank} {told}\\n'.encode())  # whole lines of both processes\n"
            "torch.distributed.destroy_process_group()\n"
        )
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run([*start, str(script)], env=ENVIRONMENT, text=True, capture_output=True, timeout=150)
        assert done.returncode == 0, done.stderr
        for rank in range(2):
            assert f"rank {rank} no more of it" in done.stdout
            assert f"rank {rank} hflip is 0.2 now and 0.1 in the file" in done.stdout
        assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3  # the seed of the first process is kept


def test_a_rewrite_that_weights_decide_about_is_the_same_each_time() -> None:
    """This rule measures gradient gains of the weights that the constructor draws."""
    arguments = (
        "compare", "resnet18", "-k", "layers=(1,1,1,1)", "-k", "norm_layer=groupnorm",
        "--pass", "group-count:rule=measured-isometry",
        "--data", "digits", "--level", "equivalence", "-r", "test_images=20", "--device", "cpu", "--json",
    )  # fmt: skip
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(run(*arguments).stdout)
        assert torch.initial_seed() == seed
    assert json.loads(found[0])["equivalence"][0]["max_difference"] > 0 and found[0] == found[1]


def test_progress_bar_shows_the_time_left() -> None:
    code = (
        "import time\nfrom rewriter.reporting.progress import progress_bar\n"
        "with progress_bar('training 4 runs', 8) as advance:\n"
        "    for _ in range(8):\n        time.sleep(0.15); advance()\n"
    )
    first, second = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=second, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(second)
        shown = b""
        while True:
            try:
                piece = os.read(first, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.communicate()[0] == b""
    os.close(first)
    assert b"training 4 runs" in shown and b"0:00:0" in shown and b"%" in shown
