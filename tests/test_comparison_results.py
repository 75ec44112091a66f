"""What a comparison shows and writes: of models really trained, and of findings set by hand."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import timm
import torch
from matplotlib import image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import rewriter
from passes import Dropout
from rewriter.comparison.plots import save_plots
from rewriter.comparison.reports import write_reports
from rewriter.comparison.result import Comparison, Equivalence, ImageRow, Trained, Training
from rewriter.comparison.run import AFTER, ARMS, BEFORE, Epoch, Run
from rewriter.comparison.verdict import Outcome
from rewriter.errors import ComparisonError

STOPPED = "loss not finite in epoch 2, step 1"
GOLDEN = Path(__file__).parent / "golden" / "comparison.txt"


def measured(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    model.eval()
    with torch.no_grad():
        scores = model(images)
    return scores, F.cross_entropy(scores, targets).item(), (scores.argmax(1) == targets).float().mean().item()


@pytest.fixture(scope="module")
def trained() -> Comparison:
    """A small ResNet on scikit-learn's digits, with and without inserted dropout, three seeds of three epochs."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images, targets = F.interpolate(images, size=32)[:500], torch.tensor(data.target)[:500]
    learned, unseen = slice(0, 400), slice(400, 500)
    runs, outputs = [], {}
    for seed in range(3):
        for arm in ARMS:
            torch.manual_seed(seed)
            model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
            if arm == AFTER:
                original = measured(model, images[unseen], targets[unseen])[0]
                model = rewriter.rewrite(model, [Dropout(p=0.2)], input_size=32, verify=False)
                moved = (measured(model, images[unseen], targets[unseen])[0] - original).abs().max().item()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            _, loss, top1 = measured(model, images[unseen], targets[unseen])
            epochs = [Epoch(0, None, loss, {"top1": top1})]
            for number in (1, 2, 3):
                model.train()
                losses = []
                for picked in torch.randperm(400).split(50):
                    batch_loss = F.cross_entropy(model(images[learned][picked]), targets[learned][picked])
                    optimizer.zero_grad()
                    batch_loss.backward()
                    optimizer.step()
                    losses.append(batch_loss.item())
                outputs[arm], loss, top1 = measured(model, images[unseen], targets[unseen])
                epochs.append(Epoch(number, sum(losses) / len(losses), loss, {"top1": top1}))
            runs.append(Run(arm, seed, tuple(epochs), "", 900.0 + seed, 50.0, 1.5))
    training = Training("top1", True, (0, 1, 2), tuple(runs), {"epochs": 3, "lr": 0.05}, {"torch": torch.__version__})
    truth, before, after = targets[unseen], outputs[BEFORE].argmax(1), outputs[AFTER].argmax(1)
    furthest = (outputs[BEFORE] - outputs[AFTER]).abs().amax(1)
    columns = zip(truth.tolist(), before.tolist(), after.tolist(), furthest.tolist(), strict=True)
    rows = tuple(ImageRow(i, t, b, a, d, float(a == b)) for i, (t, b, a, d) in enumerate(columns))
    final = {
        arm: {"top1": (predicted == truth).float().mean().item()}
        for arm, predicted in ((BEFORE, before), (AFTER, after))
    }
    return Comparison(
        "test_resnet",
        ("dropout: 1 applied, 0 skipped",),
        "digits: 400 train and 100 test images",
        tuple(Equivalence(name, 100, moved == 0, moved, moved, 0.0, 1.0) for name in ("dropout", "all")),
        Trained(final[BEFORE], final[AFTER], rows),
        training,
    )


def made() -> Comparison:
    """Findings of every kind: a pass that changes the output, one that cannot be decided, and a run that stopped."""
    runs = []
    for seed, (before, after) in enumerate([(0.801, 0.815), (0.793, 0.806), (0.812, 0.823), (0.807, 0.0)]):
        for arm, top1 in ((BEFORE, before), (AFTER, after)):
            start = Epoch(0, None, 2.31, {"top1": 0.1, "top5": 0.5})
            end = Epoch(1, 0.9, 1.1 - top1, {"top1": top1, "top5": 0.99})
            cost = (812.4 if arm == BEFORE else 790.1, 410.2 if arm == BEFORE else 402.7, 33.0)
            runs.append(Run(arm, seed, (start, end), "", *cost) if top1 else Run(arm, seed, (start,), STOPPED, *cost))
    rows = (
        ImageRow(0, 7, 7, 7, 1.5e-7, 1.0),
        ImageRow(1, 2, 2, 3, 0.031, 0.0),
        ImageRow(2, 4, 9, 4, 0.02, 0.0),
        ImageRow(3, 4, 4, 4, 0.0, 1.0),
    )
    return Comparison(
        "timm.models.resnet.ResNet",
        ("dropout: 8 applied, 2 skipped", "atrous-rates: 1 applied, 0 skipped", "group-count: 3 applied, 0 skipped"),
        "digits: 1437 train and 360 test images",
        (
            Equivalence("dropout", 64, True, 0.0, 0.0, 0.0, 1.0),
            Equivalence("atrous-rates", 64, False, 0.3134, 0.0213, 0.0, 0.921875),
            Equivalence("group-count", 64, None, 3.1e-7, 2e-8, 3.4e-7, None),
            Equivalence("all", 64, False, 0.3134, 0.0213, 3.4e-7, 0.921875),
        ),
        Trained({"top1": 0.75, "test_loss": 0.123410}, {"top1": 0.75, "test_loss": 0.1234104}, rows),
        Training("top1", True, (0, 1, 2, 3), tuple(runs), {"epochs": 1, "optimizer": "SGD"}, {"device": "cpu"}),
        ("weight-decay advises and edits nothing",),
    )


def table_widths(markdown: str) -> list[set[int]]:
    """The numbers of cells of the lines of each table."""
    tables = re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE)
    return [{len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]


class TestText:
    def test_golden(self) -> None:
        assert str(made()) + "\n" == GOLDEN.read_text(encoding="utf-8")

    def test_of_a_real_training(self, trained: Comparison) -> None:
        text = str(trained)
        assert max(map(len, text.splitlines())) <= 100
        assert text.splitlines()[1].strip().startswith("verdict: ")
        assert trained.verdict.difference is not None and trained.verdict.difference.count == 3
        assert trained.verdict.outcome is not Outcome.UNDECIDED
        assert "dropout leaves it bit-identical; all passes together leave it bit-identical" in text
        flipped = [row for row in trained.trained.rows if row.before != row.after]  # type: ignore[union-attr]
        assert f"{100 - len(flipped)} of 100 images in full" in text
        assert all(f"image {row.index}: class {row.before} → {row.after}" in text for row in flipped[:5])

    def test_culprits(self) -> None:
        found = made()
        assert "the output is changed by atrous-rates; dropout leaves it bit-identical" in str(found)
        together = dataclasses.replace(found, equivalence=(found.equivalence[0], found.equivalence[3]))
        assert "changed by all passes together, by none of them alone" in str(together)
        kept = dataclasses.replace(found, equivalence=(found.equivalence[0],))
        assert "changed" not in str(kept).split("\n\n")[1]

    def test_nothing_was_asked_for(self) -> None:
        empty = Comparison("ResNet", (), "none")
        assert empty.verdict.outcome is Outcome.UNDECIDED and "no training" in str(empty)
        assert Comparison.from_json(empty.to_json()) == empty

    def test_segmentation_and_values_that_are_no_numbers(self) -> None:
        rows = (ImageRow(0, None, None, None, math.nan, 0.91), ImageRow(1, None, None, None, 0.1, 1.0))
        found = Comparison("UNet", (), "d", trained=Trained({"miou": math.nan}, {"miou": 0.5}, rows))
        text = str(found)
        assert "image 0: 91.0 % of its predictions are the same" in text
        assert "same prediction: 95.5 %, 1 of 2 images in full" in text and "nan (image 0)" in text

    def test_long_names_stay_in_the_terminal(self) -> None:
        found = made()
        long = "a_pass_with_a_name_" * 8
        renamed = dataclasses.replace(
            found, model=long, equivalence=tuple(dataclasses.replace(item, name=long) for item in found.equivalence)
        )
        assert max(map(len, str(renamed).splitlines())) <= 100

    def test_notebook(self) -> None:
        shown: list[str] = []
        made()._repr_pretty_(SimpleNamespace(text=shown.append), False)
        assert shown == [str(made())]

    def test_markdown(self, trained: Comparison) -> None:
        for found in (made(), trained):
            text = found.to_markdown()
            assert text.startswith("# comparison of") and "max \\|difference\\|" in text
            assert found.verdict.sentence in text
            widths = table_widths(text)
            assert len(widths) == 5 and all(len(cells) == 1 for cells in widths)


class TestJson:
    def test_round_trip(self, trained: Comparison) -> None:
        for found in (made(), trained):
            data = json.loads(found.to_json())
            assert data["verdict"]["sentence"] == found.verdict.sentence
            assert Comparison.from_json(found.to_json()) == found

    def test_timing_is_apart(self, trained: Comparison) -> None:
        runs = trained.training.runs  # type: ignore[union-attr]
        slower = [dataclasses.replace(run, images_per_second=1.0, peak_megabytes=None, seconds=9.0) for run in runs]
        training = dataclasses.replace(trained.training, runs=tuple(slower))  # type: ignore[type-var]
        other = dataclasses.replace(trained, training=training)
        assert other.to_json() != trained.to_json()
        assert other.to_json(timing=False) == trained.to_json(timing=False)
        assert other.to_csv() == trained.to_csv()
        read = Comparison.from_json(trained.to_json(timing=False))
        assert read.verdict == trained.verdict and read.training.runs[0].seconds == 0  # type: ignore[union-attr]

    def test_values_that_are_no_numbers(self) -> None:
        rows = (ImageRow(0, 1, 1, 1, math.inf, 1.0),)
        runs = (Run(BEFORE, 0, (Epoch(0, None, -math.inf, {"top1": 0.5}),), "lost"),)
        training = Training("top1", True, (0,), runs, {"clip": math.inf})
        found = Comparison("m", (), "d", trained=Trained({"a": math.inf}, {"a": 1.0}, rows), training=training)
        text = found.to_json()
        assert "Infinity" not in text
        read = Comparison.from_json(text)
        assert read.trained == found.trained and read.training.runs == runs  # type: ignore[union-attr]

    def test_damage_is_named(self) -> None:
        text = made().to_json()
        data = json.loads(text)
        for damaged, words in (
            (text[:-20], "not JSON"),
            ("[]", "expected a rewriter comparison"),
            (json.dumps({**data, "format": 99}), "99"),
            (json.dumps({**data, "equivalence": 1}), "Comparison.equivalence"),
            (json.dumps({**data, "training": {**data["training"], "metric": 3}}), "Training.metric"),
            (json.dumps({**data, "training": None}), "damaged"),
            (json.dumps({**data, "surprise": 1}), "surprise"),
            (json.dumps({key: value for key, value in data.items() if key != "model"}), "model"),
        ):
            with pytest.raises(ComparisonError, match=words):
                Comparison.from_json(damaged)


class TestCsv:
    def test_runs(self, trained: Comparison) -> None:
        rows = list(csv.DictReader(io.StringIO(trained.to_csv())))
        expected = [(run, epoch) for run in trained.training.runs for epoch in run.epochs]  # type: ignore[union-attr]
        assert len(rows) == len(expected) == 24
        for row, (run, epoch) in zip(rows, expected, strict=True):
            assert (row["arm"], int(row["seed"]), int(row["epoch"])) == (run.arm, run.seed, epoch.number)
            assert float(row["top1"]) == epoch.metrics["top1"] and float(row["test_loss"]) == epoch.test_loss
        assert [row["stopped"] for row in csv.DictReader(io.StringIO(made().to_csv()))].count(STOPPED) == 1

    def test_images(self, trained: Comparison) -> None:
        rows = list(csv.DictReader(io.StringIO(trained.images_to_csv())))
        expected = trained.trained.rows  # type: ignore[union-attr]
        assert [float(row["max_difference"]) for row in rows] == [row.max_difference for row in expected]
        assert [int(row["after"]) for row in rows] == [row.after for row in expected]

    def test_nothing_to_write(self) -> None:
        empty = Comparison("ResNet", (), "none")
        for write in (empty.to_csv, empty.images_to_csv):
            with pytest.raises(ComparisonError, match="to write"):
                write()


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class TestFiles:
    def test_everything_is_written(self, trained: Comparison, tmp_path: Path) -> None:
        written = write_reports(trained, tmp_path / "new" / "folder")
        names = {"summary.md", "result.json", "runs.csv", "images.csv"}
        names |= {f"{plot}.{suffix}" for plot in ("learning_curves", "differences") for suffix in ("png", "svg")}
        assert {path.name for path in written} == names == {path.name for path in (tmp_path / "new/folder").iterdir()}
        assert Comparison.from_json((tmp_path / "new/folder/result.json").read_text(encoding="utf-8")) == trained
        drawn = image.imread(tmp_path / "new/folder/learning_curves.png")
        assert drawn.shape[0] > 300 and drawn.std() > 0.01

    def test_without_training(self, tmp_path: Path) -> None:
        written = write_reports(dataclasses.replace(made(), training=None), tmp_path)
        assert [path.name for path in written] == ["summary.md", "result.json", "images.csv"]

    def test_plots_repeat_themselves_and_leave_settings_alone(self, tmp_path: Path) -> None:
        backend, size = matplotlib.get_backend(), matplotlib.rcParams["font.size"]
        first = save_plots(made(), tmp_path / "first")
        with matplotlib.rc_context({"font.size": 31, "lines.linewidth": 9}):
            second = save_plots(made(), tmp_path / "second")
            assert matplotlib.rcParams["font.size"] == 31
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
        assert (matplotlib.get_backend(), matplotlib.rcParams["font.size"]) == (backend, size)

    def test_plots_of_what_never_finished(self, tmp_path: Path) -> None:
        found = made()
        runs = found.training.runs  # type: ignore[union-attr]
        for case, kept in (("stopped", runs[-1:]), ("one arm", runs[:1]), ("one seed", runs[:2])):
            training = dataclasses.replace(found.training, runs=kept)  # type: ignore[type-var]
            written = save_plots(dataclasses.replace(found, training=training), tmp_path / case)
            assert len(written) == (4 if case == "one seed" else 2)

    def test_no_room(self, trained: Comparison, tmp_path: Path) -> None:
        write_reports(trained, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with room_for(3000), pytest.raises(ComparisonError, match=r"result\.json cannot be written"):
            write_reports(trained, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_directory_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("")
        with pytest.raises(ComparisonError, match="taken"):
            write_reports(made(), tmp_path / "taken")
