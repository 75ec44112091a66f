"""Many paths told as few: exactly these, and no product that is not there."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from rewriter.text import joined_groups

NUMBERS = st.integers(0, 12)
PATHS = st.lists(
    st.one_of(
        st.builds("layer{}.{}".format, NUMBERS, NUMBERS),
        st.builds("blocks.{}.attn.norm{}.{}".format, NUMBERS, NUMBERS, NUMBERS),
        st.sampled_from(["", "head", "stem.conv"]),
    ),
    min_size=1,
    max_size=30,
    unique=True,
)


def told(text: str) -> list[str]:
    """The paths that a text such as ``layer{1,4}.{0-2}, layer2.{0-3} (10), head`` names."""
    found: list[str] = []
    for term in re.split(r", (?![^{]*})", re.sub(r" \(\d+\)", "", text)):
        parts = re.split(r"\{([^}]*)\}", term)
        choices = [
            [str(n) for run in part.split(",") for n in range(int(run.split("-")[0]), int(run.split("-")[-1]) + 1)]
            if index % 2
            else [part]
            for index, part in enumerate(parts)
        ]
        found += ["".join(choice) for choice in itertools.product(*choices)]
    return found


@given(PATHS)
def test_exactly_the_paths_that_were_given(paths: list[str]) -> None:
    found = told(joined_groups(paths))
    assert sorted(found) == sorted(path or "(root)" for path in paths)


def test_a_resnet() -> None:
    blocks = [f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)]
    assert joined_groups(blocks) == "layer{1,4}.{0-2}, layer2.{0-3}, layer3.{0-5} (16)"
    assert joined_groups(["a.0.b", "a.2.b"]) == "a.{0,2}.b (2)"
    assert joined_groups(["a.7"]) == "a.7"
