"""docs/trainers.md says of every verb what it does with models as trainers and libraries hold them."""

from __future__ import annotations

import pytest
from trainer_table import RIGHT, SITUATIONS, UNSUPPORTED, VERBS, documented, measured

SHOWN = documented()


@pytest.mark.trainers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_it_is_as_the_page_says(situation: str, verb: str) -> None:
    assert measured(situation, verb) == SHOWN[situation][verb]


def test_the_page_has_every_cell_and_every_refusal_a_remedy() -> None:
    assert list(SHOWN) == list(SITUATIONS)
    cells = [text for row in SHOWN.values() for text in row.values()]
    assert len(cells) == len(SITUATIONS) * len(VERBS) and cells.count(RIGHT) > len(cells) / 2
    remedies = ("first", "give", "before", "Gather", "inplace=True", "Save")
    for text in cells:
        assert text == RIGHT or text.startswith(UNSUPPORTED) or any(word in text for word in remedies), text
