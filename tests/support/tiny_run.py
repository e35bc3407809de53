"""A tiny dataset and recipe of text and images, on which a run takes a second or two."""

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vigil_data.items import Item
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run
from vigil_training.tracking.metrics import is_exact

WORDS = ("red", "green", "blue", "cat", "dog", "sun", "rain", "tree", "stone", "river")


def picture(random: np.random.Generator, bright: bool) -> bytes:
    level = 200 if bright else 50
    pixels = np.clip(random.normal(level, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_items(count: int, split: str, seed: int) -> list[Item]:
    """``cat`` follows the word, ``bright`` the picture; a third of the targets are unknown and some items lack a modality."""
    random = np.random.default_rng(seed)
    items = []
    for n in range(count):
        words = random.choice(WORDS, int(random.integers(2, 12)))
        bright = bool(random.random() < 0.5)
        text = (" ".join(words),) if random.random() < 0.9 else ()
        image = (picture(random, bright),) if random.random() < 0.5 or not text else ()
        targets: dict[str, float | None] = {
            "cat": float("cat" in words) if text and random.random() < 0.8 else None,
            "bright": float(bright) if image else None,
        }
        items.append(Item(f"{split}-{n}", text, image, (), targets, {"split": split, "language": "en" if n % 2 else "de"}))
    return items


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``dataset`` and ``tokenizer.json``."""
    from vigil_data.dataset.dataset import write

    folder = tmp_path_factory.mktemp("material")
    write_tokenizer(folder / "tokenizer.json")
    write(folder / "dataset", [*make_items(120, "train", 0), *make_items(40, "validation", 1), *make_items(40, "test", 2)])
    return folder


@pytest.fixture(scope="session")
def make_recipe(material: Path) -> Callable[..., Recipe]:
    """A function that makes the tiny recipe; keyword arguments change values, with ``__`` for the dots of a key path."""
    return lambda **changes: Recipe.model_validate(recipe_values(material, **changes))


@pytest.fixture(scope="session")
def train() -> Callable[[Recipe, Path], Run]:
    """A function that trains a recipe into a folder as `vigil train` does."""

    def train(recipe: Recipe, folder: Path) -> Run:
        from vigil_training.trainer.fit import fit_recipe

        return fit_recipe(recipe, as_text(recipe), folder)

    return train


@pytest.fixture(scope="session")
def saved() -> Callable[[Path], dict[tuple[str, str], Any]]:
    """A function that reads a checkpoint: kind and name to tensor, for weights and the optimizer's moments."""

    def saved(path: Path) -> dict[tuple[str, str], Any]:
        from vigil_training.checkpoint.reader import CheckpointReader

        reader = CheckpointReader(path)
        kinds = ("weight", "average", "exp_avg", "exp_avg_sq", "step")
        return {(kind, name): reader.read_full(kind, name) for kind in kinds for name in reader.names(kind)}

    return saved


@pytest.fixture(scope="session")
def assert_same_run(saved: Callable[[Path], dict[tuple[str, str], Any]]) -> Callable[[Path, Path], None]:
    """A function that asserts that two runs are equal: weights and moments bitwise, metrics, thresholds."""

    def assert_same(left: Path, right: Path) -> None:
        import torch

        assert {path.name for path in (left / "checkpoints").iterdir()} == {
            path.name for path in (right / "checkpoints").iterdir()
        }
        for name in ("last", "best"):
            expected, found = (saved(Run(run).checkpoint(name)) for run in (left, right))
            assert expected.keys() == found.keys()
            assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
        assert numbers(left) == numbers(right)
        assert (left / "thresholds.json").read_text() == (right / "thresholds.json").read_text()

    def numbers(run: Path) -> list[dict[str, Any]]:
        """Return the metrics without those of the clock."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key == "step" or is_exact(key)} for line in lines]

    return assert_same


@pytest.fixture(scope="session")
def trained(
    make_recipe: Callable[..., Recipe], train: Callable[[Recipe, Path], Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The tiny recipe, trained once; tests do not change it."""
    return train(make_recipe(), tmp_path_factory.mktemp("runs") / "tiny")


def recipe_values(material: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "taxonomy": {"name": "tiny", "heads": {"words": {"labels": {"cat": {}}}, "looks": {"labels": {"bright": {}}}}},
        "data": {"dataset": str(material / "dataset"), "batch": {"budget": 200, "pool": 3, "cost": {"image": 16}}},
        "inputs": {
            "text": {"tokenizer": {"kind": "local", "path": str(material / "tokenizer.json")}, "max_tokens": 16, "overlap": 2},
            "image": {"size": 16},
        },
        "model": {
            "width": 16,
            "dropout": 0.1,
            "encoders": {
                "text": {
                    "weights": {"kind": "random"},
                    "config": {
                        "model_type": "bert",
                        "vocab_size": 14,
                        "hidden_size": 16,
                        "num_hidden_layers": 2,
                        "num_attention_heads": 2,
                        "intermediate_size": 32,
                        "max_position_embeddings": 32,
                    },
                },
                "image": {
                    "weights": {"kind": "random"},
                    "name": "vit_tiny_patch16_224",
                    "options": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
                },
            },
            "fusion": {"kind": "transformer", "layers": 1, "heads": 2},
        },
        "optimizer": {"lr": 0.003},
        "training": {"epochs": 3, "accelerator": "cpu", "threads": 1},
        "checkpoint": {"every_steps": 2},
        "evaluation": {"slices": ["language"]},
        "tracking": {"mode": "disabled"},
    }
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = value
    return values


def as_text(recipe: Recipe) -> str:
    """YAML that `vigil train` reads; JSON is YAML."""
    return recipe.model_dump_json(indent=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        reason = "a small disk cannot be mounted, which takes root"
        pytest.fail(reason) if os.environ.get("VIGIL_REQUIRE_ALL") == "1" else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
