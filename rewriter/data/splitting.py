"""Split examples into training and test examples, identically on every machine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

TEST_SHARE = 0.2


def stratified(strata: Sequence[Hashable], test_share: float = TEST_SHARE) -> tuple[list[int], list[int]]:
    """Split so that every stratum (usually a class) contributes the same share of its examples to the test set.

    Args:
        strata: the stratum of every example.
        test_share: between 0 and 1; rounded in each stratum, with at least one example on either side. A stratum of one
            example stays in training.

    Returns:
        The indices of training and of test examples, ascending.
    """
    members: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    # numpy guarantees the stream of RandomState across versions, but not that of default_rng.
    generator = np.random.RandomState(0)
    test: set[int] = set()
    for indices in members.values():
        count = max(1, round(len(indices) * test_share))
        test.update(generator.permutation(indices)[: min(count, len(indices) - 1)].tolist())
    return [index for index in range(len(strata)) if index not in test], sorted(test)


def described(test_share: float = TEST_SHARE) -> str:
    """Describe the split in words, for ``Source.split``."""
    return f"{test_share:.0%} of every class drawn for the test, always the same"
