"""A dataset, a queue about it and a taxonomy: harmless items, and hostile ones."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from PIL import Image

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, read_queue, write_queue

LABELS = ("spam", "hate")
MARKUP = '<img src=x onerror="document.title=`taken`"><script>document.title="taken"</script></p><b>bold</b>'
HOSTILE = f"{MARKUP} \u202eevil\u202c a\u200bb"
RTL = "\u0634\u0643\u0631\u0627 jazilan \u05e9\u05dc\u05d5\u05dd"
TAXONOMY = """
taxonomy:
  name: house
  version: 3
  heads:
    policy:
      labels:
        spam:
          instruction: Does the post advertise something that nobody asked for?
          definition: Unwanted advertising, also disguised as advice or as $free samples.
          violates: [an offer with a link that does not fit the conversation]
          allowed: [the author's own work in its own thread]
          boundary:
            - {example: a discount code under a review, violates: true, reason: the author gains from it}
        hate:
          description: Attacks people for who they are.
"""


class ReviewCase(NamedTuple):
    """Files of a review."""

    queue_file: Path
    queue: Queue
    dataset: Dataset
    taxonomy: Path
    folder: Path


def picture(colour: tuple[int, int, int] = (40, 120, 180), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (320, 240), colour)
    image.paste((250, 200, 40), (100, 60, 220, 180))
    image.save(buffer, kind)
    return buffer.getvalue()


def tone() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.2 * np.sin(np.arange(8000) / 5), 8000, format="WAV")
    return buffer.getvalue()


ITEMS = [
    Item("post-1", ("who wants some?", "me, and a lot of it!"), roles={"text": ("context", "body")}),
    Item("post-2", ("Call now and win",), (picture(), picture((90, 30, 90)))),
    Item("post-3", ("so that is what we said",), (), (tone(),), roles={"text": ("transcript",)}, times=((65.0, 70.5),)),
    Item("hostile", (HOSTILE, RTL)),
    Item("broken", ("a picture that browsers do not show",), (picture(kind="TIFF"),)),
    Item("=1+1", ("word " * 5000 + "x" * 4000,)),
]


def rows(ids: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    common = {"purpose": "estimate", "ask": list(LABELS), "inclusion_probability": 0.25, "probability.spam": 0.75}
    return [{"id": id_, **common, **more} for id_ in ids]


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., ReviewCase]:
    """Make the files of a review of some items (default: all); the last one is gold and asks for one label alone."""

    def make(*ids: str) -> ReviewCase:
        dataset = tmp_path / "posts"
        write(dataset, ITEMS)
        chosen = ids or tuple(item.id for item in ITEMS)
        table = queue_table([*rows(chosen[:-1]), *rows(chosen[-1:], purpose="gold", ask=["hate"])], LABELS)
        file = tmp_path / "queue.jsonl"
        write_queue(file, Queue(table, QueueRecord("probability", LABELS)))
        taxonomy = tmp_path / "house.yaml"
        taxonomy.write_text(TAXONOMY)
        return ReviewCase(file, read_queue(file), Dataset(dataset), taxonomy, tmp_path)

    return make
