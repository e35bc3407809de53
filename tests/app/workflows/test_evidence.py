"""Locations of segments in the report's evidence."""

import pytest

from vigil.workflows.evidence import where
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Span

ITEM = Item(
    "1",
    ("a title", "a text", "said"),
    (b"cover", b"picture"),
    (b"sound",),
    roles={"text": ("title", "body", "transcript"), "image": ("cover", "body")},
    times=(None, None, (12.5, 77.04)),
)


@pytest.mark.parametrize(
    ("modality", "index", "span", "location"),
    [
        ("text", 0, Span(0, 2, 7), "title (text 1), characters 3 to 7"),
        ("text", 1, Span(0, 0, 6), "text 2, characters 1 to 6"),
        ("text", 2, Span(0, 0, 4), "transcript (text 3), 0:12.5 to 1:17.0"),
        ("image", 0, Span(0), "cover (image 1)"),
        ("image", 1, Span(0), "image 2"),
        ("audio", 0, Span(0, 5, 10), "sound 1, 0:05.0 to 0:10.0"),
    ],
)
def test_where_names_role_and_time(modality: Modality, index: int, span: Span, location: str) -> None:
    assert where(modality, span.placed(ITEM, modality, index)) == location
