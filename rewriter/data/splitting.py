"""Splits of one set of examples into training and test examples, the same on every machine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

TEST_SHARE = 0.2


def stratified(strata: Sequence[Hashable], test_share: float = TEST_SHARE) -> tuple[list[int], list[int]]:
    """Split so that every stratum (mostly: class) gives the same share of its examples to the test.

    Args:
        strata: of every example, the stratum it is in.
        test_share: between 0 and 1; rounded in each stratum, of which at least one example stays on either side. A
            stratum of one example stays in training.

    Returns:
        The numbers of training and of test examples, ascending.
    """
    members: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    # numpy promises the stream of RandomState for all versions, which it does not for default_rng.
    generator = np.random.RandomState(0)
    test: set[int] = set()
    for indices in members.values():
        count = max(1, round(len(indices) * test_share))
        test.update(generator.permutation(indices)[: min(count, len(indices) - 1)].tolist())
    return [index for index in range(len(strata)) if index not in test], sorted(test)


def described(test_share: float = TEST_SHARE) -> str:
    """In words, for ``Source.split``."""
    return f"{test_share:.0%} of every class drawn for the test, always the same"
