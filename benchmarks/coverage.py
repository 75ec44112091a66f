"""What the passes find in whole model libraries: sweeps, and from their result files docs/coverage.md.

    python benchmarks/coverage.py sweep FOLDER     # hours of one core; goes on where it stopped
    python benchmarks/coverage.py write FOLDER     # docs/coverage.md and the floors in tests/whole/sites.json

The sweeps are those of ``rewriter sweep``; the same commands give the same rows.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rewriter import zoo
from rewriter.reporting.tables import markdown_table

ROOT = Path(__file__).parent.parent
FAMILIES: dict[str, str] = json.loads((ROOT / "tests" / "timm_families.json").read_text())
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
TRANSFORMERS = ("tu-vit_tiny_patch16_224", "tu-vit_small_patch16_224", "tu-deit3_small_patch16_224")
"""DPT reads the tokens of a vision transformer."""
ARCHITECTURES = [
    f"{name}-{encoder}"
    for name in zoo.names("smp:*")
    if "-" not in name
    for encoder in (TRANSFORMERS if name == "smp:dpt" else ENCODERS)
]
HUGGING_FACE = (
    "ViTForImageClassification", "SwinForImageClassification", "ConvNextV2ForImageClassification",
    "ResNetForImageClassification", "Dinov2ForImageClassification", "BeitForSemanticSegmentation",
    "SegformerForSemanticSegmentation", "UperNetForSemanticSegmentation", "DPTForSemanticSegmentation",
    "MobileViTForSemanticSegmentation", "MobileNetV2ForSemanticSegmentation", "GLPNForDepthEstimation",
)  # fmt: skip
DIFFUSERS = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL")
PASSES = (
    "atrous-rates", "dropout:p=0.1,head_p=0", "group-count", "scale-equalizer:additive=true", "stochastic-pooling",
    "weight-decay",
)  # fmt: skip
BY_NAME = (
    "gaussian-attention-bias", "kernel-padding", "numeric-safety", "patch-norm", "position-variance",
    "temperature-free", "timestep-embedding",
)  # fmt: skip
"""The passes that run when they are named, in sweeps of their own."""
SWEEPS: dict[str, tuple[str, ...]] = {
    "timm": ("timm:*",),
    "torchvision": ("torchvision:*",),
    "smp": tuple(ARCHITECTURES),
    "hf": tuple(f"hf:{name}" for name in HUGGING_FACE),
    "diffusers": tuple(f"diffusers:{name}" for name in DIFFUSERS),
    "zoo": ("zoo:*",),
    "numerics": (*(f"timm:{name}" for name in FAMILIES.values()), "--numerics"),
}
BY_NAME_SWEEPS = {**{name: asked for name, asked in SWEEPS.items() if name not in ("timm", "numerics")},
                  "timm": tuple(f"timm:{name}" for name in FAMILIES.values())}  # fmt: skip
LIBRARIES = {
    "timm": "timm", "torchvision": "torchvision", "smp": "segmentation_models_pytorch", "hf": "transformers",
    "diffusers": "diffusers", "zoo": "reference models",
}  # fmt: skip

ELSEWHERE = "## Libraries that nobody here chose"

INTRODUCTION = """# Coverage

What the six passes find in every model of timm and torchvision, every architecture of segmentation_models_pytorch with
three encoders, models of transformers and diffusers, and the reference models of this project. Written by
`python benchmarks/coverage.py`, from the sweeps

```
{commands}
```

Versions: {versions}. Dropout is asked for in every residual branch (`p=0.1`) and not in heads (`head_p=0`), so that
heads are left to stochastic pooling; scale-equalizer takes sums, too. Each model is created, traced in training and in
evaluation mode, planned, edited, verified and restored: on meta tensors, so without values, except where the table
*With weights* says so. There the eval output of the passes that preserve it was compared bit for bit; for one model of
each timm family also, after undo, outputs, gradients, buffers and random numbers in both modes. `weight-decay` edits
nothing: what counts is the gammas that it classifies.
"""


OF_TIMM = """Of timm one model a family. `kernel-padding` leaves poolings alone, `gaussian-attention-bias` attention without a relative bias;
`numeric-safety` and `temperature-free` are for losses, so that no find is what is expected here."""  # noqa: E501


def sweep(folder: Path) -> None:
    """Run the sweeps, or go on with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, sweeps, passes in (("", SWEEPS, PASSES), ("by-name-", BY_NAME_SWEEPS, BY_NAME)):
        for name, asked in sweeps.items():
            file = str(folder / f"{prefix}{name}.jsonl")
            subprocess.run(["rewriter", "sweep", *asked, *_asking(passes), "-o", file], check=False)


def _asking(passes: Sequence[str]) -> list[str]:
    return [text for name in passes for text in ("--pass", name)]


def read(file: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The versions in the header of a result file, and its rows, the last one of each name."""
    header, *rows = (json.loads(line) for line in file.read_text().splitlines())
    return header["versions"], list({row["name"]: row for row in rows}.values())


def write(folder: Path) -> None:
    """docs/coverage.md and tests/whole/sites.json."""
    families = set(FAMILIES.values())
    found = {name: read(folder / f"{name}.jsonl") for name in SWEEPS}
    versions, (*meta, numerics) = found["timm"][0], (rows for _, rows in found.values())
    rows = [row for library in meta for row in library]
    commands = ["rewriter sweep 'timm:*' 'torchvision:*' 'zoo:*' <names of the other libraries below>"]
    commands.append("rewriter sweep <one timm name a family> --numerics")
    text = INTRODUCTION.format(
        commands="\n".join(f"{command} {' '.join(_asking(PASSES))}" for command in commands),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )
    page = ROOT / "docs" / "coverage.md"
    named = [row for name in BY_NAME_SWEEPS for row in read(folder / f"by-name-{name}.jsonl")[1]]
    parts = [text, "## Libraries", libraries(rows), libraries(numerics, "timm, one a family, with weights")]
    parts += ["## Passes that run by name", OF_TIMM, libraries(named)]
    parts += [*kept(page), "## Not ok", not_ok([*rows, *numerics, *named])]
    parts += ["## Why places are left alone", reasons([*rows, *named])]
    parts += ["## With weights", with_weights([*rows, *numerics])]
    parts += ["## All models", "Sites of each pass, and places left alone.", models(rows)]
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    tested = [row for row in rows if row["weights"] == "meta" and (":" in row["name"] or row["name"] in families)]
    floors = {row["name"]: {name: _found(counts) for name, counts in row["passes"].items()} for row in tested}
    for row in named:
        found_in = {name: _found(counts) for name, counts in row["passes"].items() if _found(counts)}
        floors.setdefault(row["name"], {}).update(found_in)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(sites)}" for name, sites in floors.items())
    (ROOT / "tests" / "whole" / "sites.json").write_text(f"{{\n{lines}\n}}\n")


def kept(page: Path) -> list[str]:
    """The section of the page that is not written here: of libraries outside these sweeps (benchmarks/foreign.py)."""
    sections = re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE)
    return [section for section in sections if section.startswith(ELSEWHERE)]


def libraries(rows: Sequence[dict[str, Any]], together: str = "") -> str:
    """One line a library; one only with the name ``together``."""
    passes = list(rows[0]["passes"])
    header = ["library", "models", "ok", *(f"`{name}`: sites, models" for name in passes), "verified", "undone"]
    lines = []
    for prefix, library in {} if together else LIBRARIES.items():
        found = [row for row in rows if (row["name"].partition(":")[0] if ":" in row["name"] else "timm") == prefix]
        lines.append([library, *_counts(found, passes)])
    if together:
        lines.append([together, *_counts(rows, passes)])
    return markdown_table(header, lines)


def _counts(rows: Sequence[dict[str, Any]], passes: Sequence[str]) -> list[str]:
    cells = [str(len(rows)), str(sum(row["status"] == "ok" for row in rows))]
    for name in passes:
        applied = [_found(row["passes"].get(name, {})) for row in rows]
        cells.append(f"{sum(applied)}, {sum(count > 0 for count in applied)}")
    return [*cells, *(str(sum(row[part] == "held" for row in rows)) for part in ("verified", "undo"))]


def _found(counts: dict[str, Any]) -> int:
    """How many places a pass edited or advised on."""
    return int(counts.get("applied", 0) + counts.get("advised", 0))


def not_ok(rows: Sequence[dict[str, Any]]) -> str:
    """Every row that failed, died, ran out of time, or could not be decided."""
    found = [row for row in rows if row["status"] != "ok" or "held" not in (row["verified"], row["undo"])]
    lines = [[row["name"], row["status"], row["error"] or row["undo_detail"] or ""] for row in found]
    late = "\n\nWhat timed out takes longer than that to run forward and backward several times on one thread."
    text = markdown_table(["model", "status", "why"], lines) if lines else "None."
    return text + late if any(row["status"] == "timed out" for row in found) else text


def reasons(rows: Iterable[dict[str, Any]]) -> str:
    """How often each pass left a place alone for each reason."""
    places: Counter[tuple[str, str]] = Counter()
    models_with: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for name, found in row["passes"].items():
            for reason, count in found["skipped"].items():
                places[name, reason] += count
                models_with[name, reason] += 1
    lines = [[name, reason, str(n), str(models_with[name, reason])] for (name, reason), n in places.most_common()]
    return markdown_table(["pass", "reason", "places", "models"], sorted(lines, key=lambda line: line[0]))


def with_weights(rows: Iterable[dict[str, Any]]) -> str:
    """Models that were run with values, and what they were traced on."""
    found = [row for row in rows if row["weights"] == "real"]
    lines = [[row["name"], row["backend"] or "", row["verified"] or "", row["undo"] or ""] for row in found]
    return markdown_table(["model", "traced on", "verified", "undone"], lines)


def models(rows: Sequence[dict[str, Any]]) -> str:
    """One line a model."""
    passes = list(rows[0]["passes"])
    header = ["model", "parameters", *passes, "left alone"]
    lines = []
    for row in rows:
        skipped: Counter[str] = Counter()
        for found in row["passes"].values():
            skipped.update(found["skipped"])
        sites = (str(_found(row["passes"][name]) or "") if name in row["passes"] else "?" for name in passes)
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        lines.append([row["name"], f"{(row['parameters'] or 0) / 1e6:.1f} M", *sites, why])
    return markdown_table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("sweep", "write"))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    sys.exit({"sweep": sweep, "write": write}[chosen.what](chosen.folder))


if __name__ == "__main__":
    main()
