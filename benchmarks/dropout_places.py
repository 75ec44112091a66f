"""Where a dropout of 0.2 belongs: residual networks on CIFAR-10, one place an arm, the same seeds in all arms.

    python benchmarks/dropout_places.py run FOLDER --data PATH      # hours of one core; goes on where it stopped
    python benchmarks/dropout_places.py write [FOLDER]              # the tables and the figure of docs and README

``PATH`` has the images as ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``. Runs are those of ``rewriter.compare``: its
trainer, its recipe, the same initial weights, batches and augmentation in all arms of a seed. One line of JSON a run.
``write`` reads the runs of FOLDER, or those that were measured and lie in ``benchmarks/results/dropout_places.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rewriter import zoo
from rewriter.comparison.devices import accelerated, repeatable
from rewriter.comparison.loading import Preprocessing, data_of_source
from rewriter.comparison.recipe import Recipe
from rewriter.comparison.scoring import scoring_of
from rewriter.comparison.training import Setting, test, train
from rewriter.data import open_source
from rewriter.model.random_state import seed_all

RECIPE = Recipe(
    seeds=6, epochs=12, batch_size=125, train_images=5000, test_images=500, optimizer="sgd", lr=0.2, weight_decay=5e-4,
    warmup=0.2, hflip=0.5,
)  # fmt: skip
"""Fixed before the first run, after one had shown what 20 epochs cost.

The 500 test images are for the curves; the verdict is of all 10,000, after training.
"""

FEW_IMAGES = replace(RECIPE, epochs=60, train_images=1000, test_images=100)
"""As many steps on a fifth of the images, each seen 60 times: is it here that a dropout wins?"""

PRE, POST = "dropout_preact_resnet", "dropout_resnet"


@dataclass(frozen=True)
class Arm:
    """A network with a dropout of 0.2 at one place, or nowhere.

    Attributes:
        model: a name of the zoo.
        place: of the dropout; empty for none.
        recipe: how it is trained.
    """

    model: str
    place: str = ""
    recipe: Recipe = RECIPE

    def __str__(self) -> str:
        images = "" if self.recipe == RECIPE else f", {self.recipe.train_images} images"
        return f"{self.model} {self.place or 'none'}{images}"


ARMS = (
    Arm(PRE), *(Arm(PRE, f"P{number}") for number in range(8)), Arm(PRE, "H4"), Arm(PRE, "H5"),
    Arm(POST), Arm(POST, "end-of-branch"), Arm(POST, "before-last-weight"), Arm(POST, "H4"), Arm(POST, "H5"),
)  # fmt: skip
TWINS = ("P3", "P5")
"""Equal to P2 and P6 to the last image, by the paper's first proposition. Two seeds show it; the rest are left out."""

ARMS_OF_FEW_IMAGES = tuple(Arm(PRE, place, FEW_IMAGES) for place in ("", "P6", "H4", "H5"))


def run_all(folder: Path, data: Path, part: int, parts: int) -> None:
    """Train what is not in ``folder`` yet: all arms of a seed, then those of the next.

    Args:
        folder: each process writes a file of its own there, and reads all.
        data: where the images are.
        part, parts: of several processes, each takes every ``parts``-th run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = open_source(f"imagefolder:{data}")
    preprocessing = Preprocessing(3, (32, 32))
    with accelerated(RECIPE.mixed_precision, "cpu") as accelerator, repeatable(accelerator.device):
        everything = data_of_source(source, preprocessing, replace(RECIPE, test_images=None), training=True)
        wanted = [
            (seed, arm)
            for arms in (ARMS, ARMS_OF_FEW_IMAGES)
            for seed in range(RECIPE.seeds)
            for arm in arms
            if seed < 2 or arm.place not in TWINS
        ]
        settings = {}
        for recipe in (RECIPE, FEW_IMAGES):
            shown = data_of_source(source, preprocessing, recipe, training=True)
            scoring = scoring_of(shown.task, shown.num_classes, shown.ignore_index)
            settings[recipe.train_images] = Setting(shown, scoring, recipe, accelerator)
        for number, (seed, arm) in enumerate(wanted):
            if number % parts != part or any(row["arm"] == str(arm) and row["seed"] == seed for row in rows(folder)):
                continue
            began = time.process_time()
            seed_all(seed)
            model = zoo.create(f"zoo:{arm.model}", dropout_at=arm.place or ()).model
            model = model.to(memory_format=torch.channels_last)  # a tenth faster
            setting = settings[arm.recipe.train_images]
            run = train(model, str(arm), seed, setting, advance=lambda: None)
            _, metrics = test(model, replace(setting, data=everything))
            row = {
                "arm": str(arm), "seed": seed, "stopped": run.stopped, "test": metrics,
                "seconds": round(time.process_time() - began), "epochs": [asdict(epoch) for epoch in run.epochs],
            }  # fmt: skip
            with (folder / f"runs-{part}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{arm}, seed {seed}: {metrics}, {row['seconds']} s", flush=True)


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The finished runs."""
    for file in sorted(folder.glob("runs-*.jsonl")):
        for line in file.read_text().splitlines():
            yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("folder", type=Path)
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--part", type=int, default=0)
    run.add_argument("--parts", type=int, default=1)
    write = commands.add_parser("write")
    write.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.command == "run":
        torch.set_num_threads(1)
        run_all(arguments.folder, arguments.data, arguments.part, arguments.parts)
    else:
        import dropout_places_tables

        found = None if arguments.folder is None else list(rows(arguments.folder))
        dropout_places_tables.write(found)


if __name__ == "__main__":
    main()
