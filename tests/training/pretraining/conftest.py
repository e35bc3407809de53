"""Items whose texts and images belong together: two words, and a picture with the colours of both."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import WORDS, write_tokenizer

from vigil_data.dataset.dataset import write
from vigil_data.items import Item

COLOURS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]  # noqa: RUF005 (one colour a word)
    + [(255, 255, 255), (0, 0, 0), (128, 64, 0), (128, 128, 128)]
)


def picture(random, first, second) -> bytes:
    pixels = np.concatenate([np.broadcast_to(COLOURS[i], (16, 8, 3)) for i in (first, second)], axis=1)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A folder with ``dataset`` and ``tokenizer.json``; no item has a target, and a fifth have one modality."""
    folder, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    write_tokenizer(folder / "tokenizer.json")
    every = list(combinations(range(len(WORDS)), 2))
    items = []
    for split, concepts in (("train", [every[i] for i in random.integers(len(every), size=400)]), ("validation", every)):
        for number, concept in enumerate(concepts):
            one, other = random.permutation(concept)
            text = (f"{WORDS[one]} {WORDS[other]}",)
            image = (picture(random, *random.permutation(concept)),)
            if split == "train" and number % 5 == 0:
                text, image = (text, ()) if number % 2 else ((), image)
            items.append(Item(f"{split}-{number}", text, image, (), {}, {"split": split}))
    write(folder / "dataset", items)
    return folder


@pytest.fixture
def contrastive(make_recipe, pairs):
    """A function that makes a recipe of contrastive pre-training."""

    def contrastive(**changes):
        defaults = {
            "data": {
                "dataset": str(pairs / "dataset"),
                "batch": {"budget": 40, "pool": 1, "cost": {"item": 1, "character": 0, "image": 0}},
            },
            "objective": {"kind": "contrastive"},
            "optimizer": {"lr": 0.01},
            "training__monitor": "validation/recall@1",
            "training__epochs": 12,
            "checkpoint__every_steps": None,
            "model__dropout": 0.0,
        }
        return make_recipe(**{**defaults, **changes})

    return contrastive
