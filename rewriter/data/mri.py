"""Slices of a head, with grey and white matter: the MNI ICBM152 template in the files of nilearn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rewriter.data.examples import ArrayExamples
from rewriter.data.registry import Request, described
from rewriter.data.source import Source, Task

TEST_BLOCKS, BLOCK, GAP = 4, 8, 1
SMALLEST_TISSUE = 0.03
"""Share of a slice that has to be tissue."""


@described(
    "mri-seg",
    Task.SEGMENTATION,
    content="axial slices of one averaged head (T1), background, grey and white matter: 98 training and 32 test "
    "images, grey, 233x197",
    disk="5 MB, in nilearn",
    licence="MNI ICBM152 2009a: free to use, copy and distribute with its copyright notice",
    install="pip install nilearn",
)
def mri(request: Request) -> Source:
    head, grey, white = (_axial(request, kind) for kind in ("t1", "gm", "wm"))
    # Maps of probability, 255 for certain. A pixel is background if that is likelier than either tissue.
    background = 255 - np.minimum(grey.astype(np.int16) + white, 255)
    classes = np.stack([background, grey, white]).argmax(axis=0).astype(np.uint8)
    train, test = _blocks(np.flatnonzero((classes > 0).mean(axis=(1, 2)) >= SMALLEST_TISSUE).tolist())
    return request.source(
        train=ArrayExamples(head[train], classes[train]),
        test=ArrayExamples(head[test], classes[test]),
        num_classes=3,
        channels=1,
        size=head.shape[1:],
        class_names=("background", "grey matter", "white matter"),
        split=f"{TEST_BLOCKS} blocks of {BLOCK} neighbouring slices for the test, and {GAP} slice between them and the "
        f"training left out",
    )


def _axial(request: Request, kind: str) -> npt.NDArray[np.uint8]:
    """``(slices, height, width)``, the front of the head up."""
    nibabel = request.library("nibabel")
    path = request.path("nilearn", f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    volume = np.asanyarray(nibabel.load(path).dataobj)
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1], dtype=np.uint8)


def _blocks(slices: Sequence[int]) -> tuple[list[int], list[int]]:
    """Blocks for the test in the middle of equal parts; their neighbours are in neither, for they look the same."""
    train = set(slices)
    test: list[int] = []
    for block in range(TEST_BLOCKS):
        first = (2 * block + 1) * len(slices) // (2 * TEST_BLOCKS) - BLOCK // 2
        test.extend(slices[first : first + BLOCK])
        train.difference_update(slices[first - GAP : first + BLOCK + GAP])
    return sorted(train), test


SOURCES = (mri,)
