"""``rewriter measure NAME WHAT``: what a model does with images, as figures and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rewriter.cli.asked import Asked
from rewriter.cli.options import (
    CHECKPOINT,
    INPUT_SIZE,
    JSON,
    MODEL_KWARGS,
    NAME,
    PRETRAINED,
    Preserve,
    argument,
    errors_reported,
    option,
    print_json,
    stdout_kept_clean,
)

_WHAT = Annotated[str, argument(help="effective-receptive-field, dead-pixels or extended-cam.")]
_DATA = Annotated[str, option("--data", metavar="SOURCE", help="Where the images come from: photos, mnist5k, …")]
_IMAGES = Annotated[int, option("--images", min=1, help="How many, of the test images.")]
_LAYER = Annotated[
    str | None, option("--layer", metavar="PATH", help="Measure the result of this module, not what the head reads.")
]
_CLASS = Annotated[
    int | None, option("--class", metavar="NUMBER", min=0, help="Of the score; the largest one if not given.")
]
_PASS = Annotated[list[str] | None, option("--pass", metavar="PASS", help="Rewrite with this pass before; repeatable.")]
_OUTPUT = Annotated[Path | None, option("--output", "-o", metavar="FILE", help="Write a .png or .json here.")]
_ROOT = Annotated[Path | None, option("--root", metavar="FOLDER", help="Where the files of the data are.")]
_DOWNLOAD = Annotated[bool, option("--download", help="Download the data if they are not there.")]


def measure_command(
    name: NAME,
    what: _WHAT,
    data: _DATA = "photos",
    images: _IMAGES = 20,
    layer: _LAYER = None,
    score: _CLASS = None,
    output: _OUTPUT = None,
    input_size: INPUT_SIZE = None,
    model_kwargs: MODEL_KWARGS = None,
    passes: _PASS = None,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    root: _ROOT = None,
    download: _DOWNLOAD = False,
    as_json: JSON = False,
) -> None:
    """Measure what a model does with images: receptive field, dead pixels, class activation."""
    asked = Asked(name, model_kwargs, input_size, passes, None, None, Preserve.NOTHING, pretrained, checkpoint)
    options: dict[str, Any] = {"layer": layer, "output": score}
    with errors_reported(as_json):
        import rewriter
        from rewriter import data as sources
        from rewriter.cli.measuring import images_for
        from rewriter.cli.model import Wanted, Work
        from rewriter.measurement.measure import check_request
        from rewriter.measurement.result import check_file

        given = {option: value for option, value in options.items() if value is not None}
        check_request(what, given)
        if output is not None:
            check_file(output)
        wanted, work = Wanted(asked), Work()
        wanted.is_trained = False
        with stdout_kept_clean(as_json):
            source = sources.open_source(data, root=root, download=download)
            entry, batches = images_for(wanted, source, images, work)
            model = entry.model
            if wanted.passes is not None:
                with work.step("rewrite", f"rewriting {name}"):
                    model = rewriter.rewrite(model, wanted.resolved, example_inputs=batches[:1], preserve="nothing")
            with work.step("measure", f"measuring {name} on {len(batches)} images"):
                result = rewriter.measure(model, what, batches, **given)
            if output is not None:
                result.save(output)
        if as_json:
            file = None if output is None else str(output)
            rewritten = [next(iter(item)) for item in wanted.passes or ()]
            print_json({"name": name, "passes": rewritten, "data": data, **result.head(), "file": file})
            return
        print(result)
        if output is not None:
            print(f"written to {output}")
