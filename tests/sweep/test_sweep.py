"""Sweeps over many models: what a row says, workers that die or hang, result files, and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import interruptible
from typer.testing import CliRunner, Result

import rewriter
from rewriter import Contract, sweep, zoo
from rewriter.cli import commands as cli
from rewriter.edit.edits import SetAttribute
from rewriter.guideline.base import Pass, Site
from rewriter.passes import Dropout
from rewriter.sweep.check import check_model_by_name
from rewriter.sweep.request import SweepRequest
from rewriter.sweep.results import SweepFile
from rewriter.sweep.row import Held, Status

PASSES = [{"dropout": {"p": 0.1}}]
NAMES = ["resnet10t", "test_vit", "torchvision:shufflenet_v2_x0_5", "smp:unet"]
NO_WORKER = (sys.executable, "-c", "raise SystemExit('no worker was to be started')")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.application(), ["sweep", *arguments])


def requested(*, numerics: bool = False, **model_kwargs: Any) -> SweepRequest:
    return SweepRequest.of(PASSES, "auto", model_kwargs, numerics)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One sweep over small models of every library, from the command line."""
    path = tmp_path_factory.mktemp("swept") / "rows.jsonl"
    arguments = ("--pass", "dropout:p=0.1", "--jobs", "1", "-o", str(path), "--markdown", f"{path}.md", "--json")
    return run(*NAMES, *arguments), path


@pytest.fixture
def kept(swept: tuple[Result, Path], tmp_path: Path) -> Path:
    """A copy of its result file."""
    copy = tmp_path / "rows.jsonl"
    copy.write_bytes(swept[1].read_bytes())
    return copy


@pytest.mark.slow
class TestRows:
    def test_every_library(self, swept: tuple[Result, Path]) -> None:
        done, path = swept
        assert done.exit_code == 0, done.stderr
        data = json.loads(done.stdout)
        assert [row["name"] for row in data["rows"]] == NAMES
        for row in data["rows"]:
            assert row["status"] == "ok" and row["verified"] == row["undo"] == "held", row
            assert row["backend"] == row["weights"] == "meta"
            assert set(row["milliseconds"]) == {"create", "trace", "plan", "record again", "apply", "verify", "undo"}
        assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == data["rows"]

    def test_agrees_with_plan(self, swept: tuple[Result, Path]) -> None:
        for row in json.loads(swept[0].stdout)["rows"]:
            with torch.device("meta"):
                entry = zoo.create(row["name"])
            made = rewriter.plan(entry.model, [Dropout(p=0.1)], input_size=entry.input_size)
            assert row["parameters"] == sum(p.numel() for p in entry.model.parameters())
            assert row["class_name"].endswith(type(entry.model).__name__)
            counts = row["passes"]["dropout"]
            assert counts["sites"] == counts["applied"] == len(made.sites)
            assert sum(counts["skipped"].values()) == len(made.skipped)

    def test_contracts_are_run_on_meta(self, swept: tuple[Result, Path]) -> None:
        row = next(row for row in json.loads(swept[0].stdout)["rows"] if row["name"] == "test_vit")
        assert row["passes"]["dropout"]["applied"] > 0
        assert {name for name, _, _ in row["checks"]} == {"output structure", "state dict", "gradients"}

    def test_memory_of_real_weights(self) -> None:
        row = check_model_by_name("resnet10t", requested(numerics=True))
        assert row.peak_mb is None or 20 < row.peak_mb < 2000  # 22 MB of weights

    def test_numbers(self) -> None:
        row = check_model_by_name("test_vit", requested(numerics=True))
        assert (row.status, row.verified, row.undo, row.weights) == (Status.OK, Held.HELD, Held.HELD, "real"), row
        assert ("eval output", Held.HELD, "bit-identical") in row.checks
        assert "gradients" in str(row.undo_detail) and row.milliseconds["numbers"] > 0

    @pytest.mark.parametrize(
        ("name", "backend"),
        [("torchvision:ssdlite320_mobilenet_v3_large", "cpu"), ("torchvision:r3d_18", "meta")],
    )
    def test_models_with_inputs_of_their_own(self, name: str, backend: str) -> None:
        row = check_model_by_name(name, requested())
        assert (row.status, row.backend, row.verified, row.undo) == (Status.OK, backend, Held.HELD, Held.HELD), row
        assert row.weights == ("meta" if backend == "meta" else "real")

    def test_options_of_the_model(self) -> None:
        row = check_model_by_name("test_vit", requested(img_size=(64, 64), depth=2))
        assert row.ok and row.parameters is not None
        assert row.parameters < (check_model_by_name("test_vit", requested()).parameters or 0)

    def test_failure_is_one_line(self) -> None:
        row = check_model_by_name("test_vit", requested(no_such=1))
        assert row.status is Status.FAILED and row.error is not None and row.error.startswith("CreationError: test_vit")
        assert "\n" not in row.error and "no_such" in row.error

    def test_what_undo_leaves_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = rewriter.undo

        def forgetful(model: torch.nn.Module, inplace: bool = False) -> torch.nn.Module:
            restored = original(model, inplace=inplace)
            restored.get_submodule("blocks.0").left_behind = 1  # type: ignore[assignment]
            return restored

        monkeypatch.setattr("rewriter.sweep.check.undo", forgetful)
        row = check_model_by_name("test_vit", requested())
        assert (row.status, row.undo) == (Status.FAILED, Held.NOT)
        assert "attributes of blocks.0" in str(row.error)

    def test_values_that_undo_changes_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = rewriter.undo

        def careless(model: torch.nn.Module, inplace: bool = False) -> torch.nn.Module:
            restored = original(model, inplace=inplace)
            with torch.no_grad():
                next(restored.parameters()).mul_(1.5)
            return restored

        monkeypatch.setattr("rewriter.sweep.check.undo", careless)
        row = check_model_by_name("test_vit", requested(numerics=True))
        assert (row.status, row.undo) == (Status.FAILED, Held.NOT) and "outputs" in str(row.error)

    def test_broken_contract(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rewriter.guideline.registry.installed_passes", lambda: {"stuck": Stuck})
        row = check_model_by_name("resnet10t", SweepRequest.of(["stuck"], "auto", {}, True))
        assert (row.status, row.verified) == (Status.FAILED, Held.NOT)
        assert "ContractError: pass stuck broke its contract" in str(row.error)
        assert row.passes["stuck"] == {"sites": 1, "applied": 0, "inactive": 0, "advised": 0, "skipped": {}}


@dataclass(frozen=True)
class Stuck(Pass):
    """Changes the eval output, and promises not to."""

    name: ClassVar[str] = "stuck"
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    contract: ClassVar[Contract] = Contract()

    def find(self, trace: Any) -> Iterator[Site]:
        edit = SetAttribute("bn1", "eps", 0.5)
        yield Site("stuck", "bn1", "norm", "change eps", "to break the contract", (edit,))


class TestSelect:
    def test_patterns(self) -> None:
        names = sweep.select(["resnet18*", "torchvision:resnet18", "smp:unet"])
        assert names[0] == "resnet18" and {"torchvision:resnet18", "smp:unet"} <= set(names)
        assert len(names) == len(set(names))
        assert "smp:unet-resnet18" in sweep.select(["smp:unet-*"])

    def test_shards(self) -> None:
        names = sweep.select(["torchvision:*"])
        shards = [sweep.select(["torchvision:*"], (i, 3)) for i in (1, 2, 3)]
        assert shards[1] == names[1::3] and sorted(name for shard in shards for name in shard) == sorted(names)

    @pytest.mark.parametrize("shard", [(0, 3), (4, 3)])
    def test_no_such_shard(self, shard: tuple[int, int]) -> None:
        with pytest.raises(rewriter.SweepError, match="expected i/n"):
            sweep.select(["resnet18"], shard)

    def test_no_match(self) -> None:
        done = run("resnet18", "torchvision:resnet81*")
        assert done.exit_code == 1 and done.stdout == ""
        assert "no model matches 'torchvision:resnet81*'; did you mean torchvision:resnet" in done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [("resnet18", "--shard", "3/2"), ("resnet18", "--shard", "2"), ("resnet18", "-j", "0"), ()],
        ids=" ".join,
    )
    def test_wrong_usage(self, arguments: tuple[str, ...]) -> None:
        assert run(*arguments).exit_code == 2


WORKER = """
import os, signal, sys, time
from rewriter.sweep.row import Row
from rewriter.sweep.worker import serve

def check_model_by_name(name, request):
    print("from the check", flush=True)
    os.write(1, b"from a library\\n")
    if name == "exits":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        time.sleep(600)
    return Row(name, parameters=os.getpid())

serve(check)
"""


@pytest.fixture
def worker(tmp_path: Path) -> tuple[str, ...]:
    """A worker process whose check does what the name says."""
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(WORKER), encoding="utf-8")
    return sys.executable, str(path)


@pytest.mark.slow
class TestWorkers:
    def test_death_and_silence_cost_one_row(self, worker: tuple[str, ...], tmp_path: Path) -> None:
        output = tmp_path / "rows.jsonl"
        names = ["first", "second", "exits", "killed", "third", "hangs", "last"]
        done = sweep.run(names, PASSES, jobs=1, timeout=2, output=output, command=worker)
        rows = {row.name: row for row in done.rows}
        assert list(rows) == names and not done.ok
        assert rows["exits"].status is Status.DIED and rows["exits"].error == "exit code 3: the last words"
        assert rows["killed"].status is Status.DIED and str(rows["killed"].error).startswith("signal SIGKILL")
        assert rows["hangs"].status is Status.TIMED_OUT and rows["hangs"].error == "timed out after 2 s"
        assert [name for name in names if rows[name].ok] == ["first", "second", "third", "last"]
        assert rows["first"].parameters == rows["second"].parameters != rows["third"].parameters  # long-lived, replaced
        self._retry(names, output)

    @staticmethod
    def _retry(names: list[str], output: Path) -> None:
        again = sweep.run(names, PASSES, output=output, command=NO_WORKER)
        assert again.resumed == len(names)
        asked: list[str] = []
        with pytest.raises(rewriter.SweepError, match="did not start: exit code 1: no worker was to be started"):
            sweep.run(names, PASSES, jobs=1, output=output, retry=True, command=NO_WORKER, on_start=asked.append)
        assert asked == []

    def test_several(self, worker: tuple[str, ...]) -> None:
        names = [f"model {number}" for number in range(40)]
        done = sweep.run(names, PASSES, jobs=2, command=worker)
        assert [row.name for row in done.rows] == names and done.ok
        assert len({row.parameters for row in done.rows}) <= 2

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_interrupt(self, tmp_path: Path) -> None:
        """Ctrl-C leaves whole lines and no worker."""
        code = "from rewriter.cli.commands import main; main()"
        command = [sys.executable, "-c", code, "sweep", "test_*", "resnet*", "-j", "2", "-o", "rows.jsonl"]
        output = tmp_path / "rows.jsonl"
        with subprocess.Popen(interruptible(command), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while not (output.exists() and output.read_bytes().count(b"\n") >= 4):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            workers = children(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr is not None and "the same command goes on" in process.stderr.read()
        assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
        content = output.read_text()
        rows = [json.loads(line) for line in content.splitlines()]
        assert content.endswith("\n") and len(rows) >= 4
        assert all(row["status"] == "ok" for row in rows[1:])


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
class TestResultFile:
    def test_resume(self, kept: Path) -> None:
        before = kept.read_bytes()
        done = sweep.run(NAMES[1:], PASSES, output=kept, command=NO_WORKER)
        assert [row.name for row in done.rows] == NAMES[1:] and done.resumed == 3 and done.ok
        assert kept.read_bytes() == before

    def test_half_a_line_is_run_again(self, kept: Path) -> None:
        whole = kept.read_bytes()
        kept.write_bytes(whole[:-20])
        done = run(*NAMES, "--pass", "dropout:p=0.1", "-j", "1", "-o", str(kept), "--json")
        data = json.loads(done.stdout)
        assert data["resumed"] == 3 and [row["name"] for row in data["rows"]] == NAMES
        content = kept.read_bytes()
        assert content.count(b"\n") == 5 and content.startswith(whole[: whole[:-1].rfind(b"\n") + 1])

    @pytest.mark.parametrize("kept_bytes", [0, 10, 200])
    def test_half_a_header(self, kept: Path, kept_bytes: int) -> None:
        kept.write_bytes(kept.read_bytes()[:kept_bytes])
        with SweepFile(kept, requested()) as file:
            assert file.results == {}
        assert kept.read_bytes().count(b"\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--pass", "dropout:p=0.2"), "passes is dropout(p=0.2, head_p=None) now and dropout(p=0.1, head_p=None)"),
            (("--pass", "dropout:p=0.1", "--numerics"), "numerics is yes now and no in the file"),
            (("--pass", "dropout:p=0.1", "-k", "num_classes=7"), "model-kwargs is"),
            (("--pass", "dropout:p=0.1", "--preserve", "eval"), "preserve is eval now and auto in the file"),
        ],
    )
    def test_other_request(self, kept: Path, arguments: tuple[str, ...], words: str) -> None:
        before = kept.read_bytes()
        done = run("test_vit", *arguments, "-o", str(kept))
        assert done.exit_code == 1 and words in done.stderr and "--restart" in done.stderr
        assert kept.read_bytes() == before

    def test_other_versions(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rewriter.version.__version__", "99.0")
        with pytest.raises(rewriter.SweepError, match=r"rewriter is 99\.0 now and .* in the file"):
            SweepFile(kept, requested())
        with SweepFile(kept, requested(), restart=True) as file:
            assert file.results == {}
        assert "99.0" in kept.read_text() and kept.read_bytes().count(b"\n") == 1

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (b'"format": 2', b'"format": 7', "expected the format 2 of result files, found 7"),
            (b'"name": "test_vit"', b'"nme": "test_vit"', "line 3 is damaged"),
            (b'{"kind": "rewriter sweep"', b'{"kind": "diary"', "is not the result of a sweep"),
        ],
    )
    def test_other_content(self, kept: Path, old: bytes, new: bytes, words: str) -> None:
        changed = kept.read_bytes().replace(old, new, 1)
        kept.write_bytes(changed)
        with pytest.raises(rewriter.SweepError, match=words):
            SweepFile(kept, requested())
        assert kept.read_bytes() == changed

    def test_restart_spares_what_is_no_result(self, tmp_path: Path) -> None:
        path = tmp_path / "diary.txt"
        path.write_text("dear diary")
        with pytest.raises(rewriter.SweepError, match="not the result of a sweep"):
            SweepFile(path, requested(), restart=True)
        assert path.read_text() == "dear diary"

    @pytest.mark.skipif(os.name != "posix", reason="locks of files")
    def test_two_at_once(self, kept: Path) -> None:
        with (
            SweepFile(kept, requested()),
            pytest.raises(rewriter.SweepError, match="another sweep writes to"),
        ):
            SweepFile(kept, requested(), restart=True)
        with SweepFile(kept, requested()) as file:
            assert list(file.results) == NAMES

    def test_no_such_directory(self, tmp_path: Path) -> None:
        for option in ("-o", "--markdown"):
            done = run("test_vit", option, str(tmp_path / "none" / "file"))
            assert done.exit_code == 1 and str(tmp_path / "none") in done.stderr.replace("\n", "")


@pytest.mark.slow
class TestOutput:
    def test_markdown(self, swept: tuple[Result, Path]) -> None:
        text = Path(f"{swept[1]}.md").read_text(encoding="utf-8")
        assert text.startswith("# Sweep\n") and "* models: 4: 4 ok" in text and "## Slowest" in text
        lines = [line for line in text.partition("## All models")[2].splitlines() if line]
        assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == NAMES
        assert len({line.count("|") for line in lines}) == 1

    def test_table(self, kept: Path) -> None:
        done = run(*NAMES, "--pass", "dropout:p=0.1", "-o", str(kept))
        words = " ".join(done.stdout.split())
        assert done.exit_code == 0 and done.stderr == ""
        for expected in ("models 4: 4 ok", "traced on 4 meta", "verified 4 held", "undo 4 held"):
            assert expected in words

    def test_rows_that_are_not_ok(self, kept: Path) -> None:
        bad = sweep.Row("resnet26", Status.DIED, "signal SIGSEGV")
        with SweepFile(kept, requested()) as file:
            file.append(bad)
        arguments = ("resnet26", *NAMES, "--pass", "dropout:p=0.1", "-o", str(kept))
        done = run(*arguments, "--markdown", f"{kept}.md")
        assert done.exit_code == 1
        assert "resnet26  died\n  signal SIGSEGV" in done.stdout
        assert "| resnet26 | died | signal SIGSEGV |" in Path(f"{kept}.md").read_text(encoding="utf-8")

    def test_json_error(self) -> None:
        done = run("no-such-model*", "--json")
        assert done.exit_code == 1 and json.loads(done.stdout)["error"]["type"] == "SweepError"


@pytest.mark.slow
def test_import_stays_quick() -> None:
    code = "import sys, rewriter; print([m for m in sys.modules if m.startswith(('rewriter.sweep', 'timm', 'rich'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
