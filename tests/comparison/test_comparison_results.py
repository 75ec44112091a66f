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
import numpy as np
import pytest
import timm
import torch
from matplotlib import colors, image
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import rewriter
from rewriter.comparison.figures import figures
from rewriter.comparison.findings import AFTER, ARMS, BEFORE, Epoch, Equivalence, ImageRow, Run, Trained, Training
from rewriter.comparison.result import Comparison
from rewriter.comparison.run_directory import save_plots, write_reports
from rewriter.comparison.verdict import Outcome
from rewriter.errors import ComparisonError
from rewriter.passes import Dropout

pytestmark = pytest.mark.slow

STOPPED = "loss not finite in epoch 2, step 1"
GOLDEN = Path(__file__).parents[1] / "golden" / "comparison.txt"


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


def on_so_many(found: Comparison, test_images: int | None) -> Comparison:
    training = dataclasses.replace(found.training, test_images=test_images)  # type: ignore[type-var]
    return dataclasses.replace(found, training=training)


def equal_arms(found: Comparison) -> Comparison:
    """The same comparison as if after had learned what before did."""
    before = [run for run in found.training.runs if run.arm == BEFORE]  # type: ignore[union-attr]
    runs = tuple(dataclasses.replace(run, arm=arm) for run in before for arm in ARMS)
    return dataclasses.replace(found, training=dataclasses.replace(found.training, runs=runs))  # type: ignore[type-var]


def of_right_images(before: list[int], after: list[int], test_images: int) -> Comparison:
    """So many images right in the last epoch, for each seed."""
    runs = [
        Run(arm, seed, (Epoch(0, None, 2.3, {"top1": 0.0}), Epoch(1, 2.0, 1.0, {"top1": right / test_images})))
        for seed, both in enumerate(zip(before, after, strict=True))
        for arm, right in zip(ARMS, both, strict=True)
    ]
    training = Training("top1", True, tuple(range(len(before))), tuple(runs), test_images=test_images)
    return Comparison("resnet10t", ("dropout: 8 places",), "mnist5k", training=training)


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

    @pytest.mark.parametrize(
        ("speeds", "words"),
        [
            ((80.0, 81.0, 79.0), "after trains at 0.80 times the speed of before (95 % interval 0.78 to 0.83)"),
            ((80.0, 125.0, 101.0), "no difference in speed beyond that between runs of one arm"),
            ((80.0, 81.0), ""),
        ],
    )
    def test_speed_is_judged_over_seeds(self, speeds: tuple[float, ...], words: str) -> None:
        runs = tuple(
            Run(arm, seed, (Epoch(0, None, 2.3, {"top1": speed / 1000}),), "", speed, seconds=20.0)
            for seed, speed_of_after in enumerate(speeds)
            for arm, speed in ((BEFORE, 100.0), (AFTER, speed_of_after))
        )
        text = str(Comparison("m", (), "d", training=Training("top1", True, tuple(range(len(speeds))), runs)))
        assert words in text and ("speed" in text) is bool(words)

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

    def test_number_of_test_images(self) -> None:
        found = on_so_many(made(), 360)
        assert Comparison.from_json(found.to_json()) == found
        data = json.loads(found.to_json())
        del data["training"]["test_images"]  # as it was written before there was this field
        assert Comparison.from_json(json.dumps(data)) == made()

    def test_damage_is_named(self) -> None:
        text = made().to_json()
        data = json.loads(text)
        for damaged, words in (
            (text[:-20], "not JSON"),
            ("[]", "expected a rewriter comparison"),
            (json.dumps({**data, "format": 99}), "99"),
            (json.dumps({**data, "equivalence": 1}), "Comparison.equivalence"),
            (json.dumps({**data, "training": {**data["training"], "metric": 3}}), "Comparison.training.metric"),
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


def text_of(figure: Figure) -> str:
    """Everything that a figure says; the lines of a heading as one."""
    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_text())


def drawn_texts(figure: Figure) -> list[Text]:
    """The texts that are seen: not the labels of ticks beyond the axes."""
    beyond = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text() and text not in beyond
    ]


class TestFigures:
    def test_say_what_was_compared(self, trained: Comparison, tmp_path: Path) -> None:
        for path in save_plots(on_so_many(trained, 100), tmp_path):
            if path.suffix == ".svg":
                # matplotlib draws letters as outlines, with the line that they are in a comment
                text = " ".join(re.findall("<!-- (.*?) -->", path.read_text(encoding="utf-8")))
                assert trained.model in text and trained.data in text and trained.change[0] in text
                assert f"verdict on top1: {trained.verdict.outcome} (3 seeds)" in text
                assert "one test image of 100 = 1 point of top1" in text

    def test_seeds_that_did_not_finish(self) -> None:
        drawn = figures(made())
        assert all("(3 of 4 seeds finished by both)" in text_of(figure) for figure in drawn.values())
        assert "after stopped" in text_of(drawn["differences"])
        curves = text_of(drawn["learning_curves"])
        assert "before, mean and range of 3 seeds" in curves and "after, mean and range of 3 seeds" in curves
        assert "before, finished by this arm alone (1)" in curves and "after, stopped (1)" in curves

    def test_equal_arms(self, trained: Comparison) -> None:
        words = "both arms have the same top1 in every epoch, to the last digit"
        equal = equal_arms(trained)
        figure = figures(equal)["learning_curves"]
        assert words in text_of(figure)
        assert words not in text_of(figures(trained)["learning_curves"])
        runs = equal.training.runs  # type: ignore[union-attr]
        second = runs[-1].epochs[1]
        moved = dataclasses.replace(second, metrics={"top1": math.nextafter(second.metrics["top1"], 2)})
        runs = (*runs[:-1], dataclasses.replace(runs[-1], epochs=(runs[-1].epochs[0], moved, *runs[-1].epochs[2:])))
        training = dataclasses.replace(equal.training, runs=runs)  # type: ignore[type-var]
        other = dataclasses.replace(equal, training=training)
        assert words not in text_of(figures(other)["learning_curves"])

    def test_both_of_equal_arms_are_seen(self, trained: Comparison) -> None:
        figure = figures(equal_arms(trained))["learning_curves"]
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3] / 255
        box = figure.axes[0].get_window_extent()
        pixels = pixels[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
        hues = colors.rgb_to_hsv(pixels)
        coloured = hues[..., 0][hues[..., 1] > 0.3]
        blue, orange = ((coloured > 0.5) & (coloured < 0.65)).sum(), (coloured < 0.12).sum()
        assert blue > 1000 and orange > 1000

    def test_axes_are_some_test_images_wide(self, trained: Comparison) -> None:
        equal = of_right_images([98, 97, 98], [98, 97, 98], 100)
        for found, right in ((on_so_many(equal_arms(trained), 100), 5), (equal, 5)):
            low, high = figures(found)["differences"].axes[0].get_xlim()
            assert -low >= right and high >= right
        late = tuple(Epoch(number, 0.1, 0.1, {"top1": top1}) for number, top1 in ((1, 0.97), (2, 0.98)))
        runs = tuple(dataclasses.replace(run, epochs=late) for run in equal.training.runs)  # type: ignore[union-attr]
        training = dataclasses.replace(equal.training, runs=runs)  # type: ignore[type-var]
        low, high = figures(dataclasses.replace(equal, training=training))["learning_curves"].axes[0].get_ylim()
        assert high - low >= 10

    def test_worth_of_a_test_image_is_said_where_it_is_known(self, trained: Comparison) -> None:
        finer = made()  # 80.1 % of 360 images is no whole number of them
        for found, known in ((on_so_many(trained, 100), True), (trained, False), (on_so_many(finer, 360), False)):
            assert all(("one test image of" in text_of(figure)) is known for figure in figures(found).values())
        loss = dataclasses.replace(trained.training, metric="test_loss", higher_is_better=False, test_images=100)  # type: ignore[type-var]
        drawn = figures(dataclasses.replace(trained, training=loss))
        assert not any("one test image of" in text_of(figure) for figure in drawn.values())
        assert "after is better" in drawn["differences"].axes[0].get_title("left")
        assert "lower is better" in text_of(drawn["learning_curves"])

    def test_an_interval_that_is_far_too_wide_is_cut(self) -> None:
        found = of_right_images([900, 900], [920, 890], 1000)  # +2 and −1 points, ±19 about +0.5
        interval = found.verdict.difference.interval  # type: ignore[union-attr]
        figure = figures(found)["differences"]
        axes = figure.axes[0]
        assert 100 * interval.high > 15 and axes.get_xlim()[1] < 5  # type: ignore[union-attr]
        assert {line.get_marker() for line in axes.lines} >= {"<", ">"}
        assert re.search(r"95 % interval −1[89]\S* to \+(19|20)", text_of(figure))
        narrow = figures(of_right_images([900, 900], [920, 915], 1000))["differences"].axes[0]
        assert not {line.get_marker() for line in narrow.lines} & {"<", ">"}

    @pytest.mark.parametrize("case", ["as it is", "stopped", "long names", "many seeds", "one seed", "wide"])
    def test_no_text_lies_on_another_or_leaves_the_figure(self, case: str, trained: Comparison) -> None:
        found = on_so_many(trained, 100)
        if case == "stopped":
            found = made()
        elif case == "long names":
            name = "transformers.models.segformer.SegformerForSemanticSegmentation_of_a_$very$_long_name" * 2
            change = tuple(f"{name}: 25 places" for name in ("atrous-rates", "dropout", "group-count")) * 5
            found = dataclasses.replace(
                found, model=name, data=f"{'tiles of a hospital, ' * 9}10 images", change=change
            )
        elif case == "many seeds":
            found = of_right_images(list(range(900, 940)), list(range(940, 900, -1)), 1000)
        elif case == "one seed":
            found = of_right_images([900], [910], 1000)
        elif case == "wide":
            found = of_right_images([900, 900], [920, 890], 1000)
        for figure in figures(found).values():
            figure.canvas.draw()
            boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
            width, height = figure.bbox.width, figure.bbox.height
            for number, (text, box) in enumerate(boxes):
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
                for other, beside in boxes[:number]:
                    apart = box.x1 <= beside.x0 or beside.x1 <= box.x0 or box.y1 <= beside.y0 or beside.y1 <= box.y0
                    assert apart, (text, other)


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
            assert len(written) == {"stopped": 0, "one arm": 2, "one seed": 4}[case]

    def test_no_room(self, trained: Comparison, tmp_path: Path) -> None:
        write_reports(trained, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with (
            room_for((tmp_path / "summary.md").stat().st_size),
            pytest.raises(ComparisonError, match=r"result\.json cannot be written"),
        ):
            write_reports(trained, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_directory_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("")
        with pytest.raises(ComparisonError, match="taken"):
            write_reports(made(), tmp_path / "taken")
