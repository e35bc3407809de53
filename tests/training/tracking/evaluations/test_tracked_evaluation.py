"""Evaluations in W&B: curves and tables equal the evaluation's numbers, and no byte of an item is there that the rule keeps."""

import io
import json
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.metrics import auc
from wandb_log import read_parts

from vigil_data.dataset.dataset import write
from vigil_data.dataset.erasure.byte_search import Pattern, Searcher
from vigil_data.items import Item
from vigil_training.runs.run import Run
from vigil_training.tracking.content import ContentLevel
from vigil_training.tracking.evaluations.tracked_evaluation import track_evaluation

LEVELS: tuple[ContentLevel, ...] = ("none", "ids", "redacted", "full")


def planted_items(count, split, seed):
    """Items with an id, a text, an author, a picture and a sound of their own."""
    random = np.random.default_rng(seed)
    items = []
    for n in range(count):
        name = f"{split}{n}x{random.integers(1e9):09d}"
        word = "cat" if n % 2 else "dog"
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.fromarray(random.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(picture, "PNG")
        soundfile.write(sound, random.uniform(-0.5, 0.5, 800), 8000, format="WAV", subtype="PCM_16")
        targets = {"cat": float(word == "cat"), "bright": float(n % 3 == 0)}
        columns = {"split": split, "language": "en" if n % 2 else "de", "author": f"author{name}"}
        text = (f"{word} sun Planted{name} tree", f"by author{name}, write to mail{name}@example.com")
        items.append(Item(f"id{name}", text, (picture.getvalue(),), (sound.getvalue(),), targets, columns))
    return items


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_recipe, train):
    """A run that was trained and tracked on planted items, its evaluation, and the items of its test split."""
    from vigil.workflows.evaluate import evaluate

    place = tmp_path_factory.mktemp("planted")
    test = planted_items(24, "test", 2)
    write(place / "dataset", [*planted_items(24, "train", 0), *planted_items(16, "validation", 1), *test])
    changes = {"data__dataset": str(place / "dataset"), "training__max_steps": 2, "evaluation__replicates": 20}
    slices = {"evaluation__slices": ["language", "author"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by wandb
        run = train(make_recipe(**changes, **slices, tracking__mode="offline", tracking__content="none"), place / "run")
    return run, evaluate(run), [*planted_items(24, "train", 0), *planted_items(16, "validation", 1), *test]


@pytest.fixture(scope="module")
def tracked(planted, tmp_path_factory):
    """The run folders after the same evaluation was tracked under each level."""
    run, evaluation, _ = planted
    folders = {}
    for level in LEVELS:
        folder = folders[level] = tmp_path_factory.mktemp(level) / "run"
        shutil.copytree(run.path, folder)
        resolved = (folder / "resolved.yaml").read_text()
        assert '"content": "none"' in resolved
        (folder / "resolved.yaml").write_text(resolved.replace('"content": "none"', f'"content": "{level}"'))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised by wandb
            track_evaluation(
                Run(folder),
                folder / "evaluation" / "test",
                evaluation.results,
                evaluation.data,
                contents=evaluation.contents,
                dataset=evaluation.dataset,
            )
    return folders


def kinds_found(folder, items):
    """Return which kinds of planted content are in any byte of W&B's folder, also within its records and pictures."""
    patterns = {}
    for item in items:
        name = item.id.removeprefix("id")
        patterns |= {Pattern(f"id{name}".encode()): "ids", Pattern(f"author{name}".encode()): "authors"}
        patterns |= {Pattern(f"Planted{name}".encode()): "texts", Pattern(f"mail{name}".encode()): "texts"}
        patterns[Pattern(item.audio[0][100:164])] = "audio"
        patterns[Pattern(item.image[0][60:124])] = "images"
        patterns[Pattern(np.asarray(Image.open(io.BytesIO(item.image[0])))[10].tobytes())] = "images"
    searcher = Searcher(patterns)
    contents = [path.read_bytes() for path in (folder / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    contents += [record.SerializeToString() for part in read_parts(folder) for record in part.records]
    contents += [json.dumps(part.history).encode() for part in read_parts(folder)]
    for content in list(contents):
        with suppress(OSError), Image.open(io.BytesIO(content)) as picture:
            contents.append(np.asarray(picture.convert("RGB")).tobytes())
    return {patterns[hit] for content in contents for hit in searcher.find(content)}


def test_no_byte_of_a_tracked_run_holds_what_its_rule_keeps_at_home(planted, tracked):
    items = planted[2]
    assert kinds_found(tracked["none"], items) == set()
    assert kinds_found(tracked["ids"], items) == {"ids"}
    assert kinds_found(tracked["redacted"], items) == {"ids"}
    assert kinds_found(tracked["full"], items) == {"ids", "authors", "texts", "images", "audio"}, "the search finds what is there"


def test_redacted_examples_have_masked_texts_and_blurred_pictures(tracked):
    rows, part = tracked_rows(tracked["redacted"], "evaluation/test/examples")
    assert {"label", "kind", "id", "probability", "threshold", "target", "evidence", "texts"} <= rows[0].keys()
    assert "[e-mail]" in rows[0]["texts"]
    assert "by [name], write to" in rows[0]["texts"]
    pictures = [content for name, content in part.files.items() if name.endswith(".png")]
    assert pictures
    assert {max(Image.open(io.BytesIO(content)).size) for content in pictures} == {96}


def test_tables_are_files_of_the_run_and_no_artifacts(tracked):
    """An artifact's files are staged by their absolute path, so that a copy of the run could not be sent."""
    kinds = {record.WhichOneof("record_type") for part in read_parts(tracked["full"]) for record in part.records}
    assert "history" in kinds
    assert not {kind for kind in kinds if "artifact" in kind}


def tracked_rows(folder, name):
    """Return the rows of a table that the last part logged, each a column to its value."""
    part = read_parts(folder)[-1]
    (path,) = [row[f"{name}/path"] for row in part.history if f"{name}/path" in row]
    table = json.loads(part.files[path])
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]], part


def test_tracked_curves_and_tables_equal_the_evaluation(planted, tracked):
    results = planted[1].results
    labels, part = tracked_rows(tracked["ids"], "evaluation/test/labels")
    assert {row["label"]: row["average_precision"] for row in labels} == {
        label: pytest.approx(found.average_precision) for label, found in results.overall.labels.items()
    }
    slices, _ = tracked_rows(tracked["ids"], "evaluation/test/slices")
    by_language = next(breakdown for breakdown in results.by if breakdown.column == "language")
    expected = {(group.value, label): found.positive for group in by_language.groups for label, found in group.labels.items()}
    assert {(row["value"], row["label"]): row["positive"] for row in slices if row["column"] == "language"} == expected
    roc, _ = tracked_rows(tracked["ids"], "evaluation/test/roc_table")
    for label, found in results.overall.labels.items():
        curve = [(row["false_positive_rate"], row["recall"]) for row in roc if row["label"] == label]
        across, up = zip((0.0, 0.0), *curve, strict=True)
        assert auc(across, up) == pytest.approx(found.auroc, abs=0.05), "all points of so few items are there but ties"
    drawn = {"precision_recall", "roc", "reliability", *(f"threshold_{name}" for name in ("precision", "recall", "flagged"))}
    assert {f"evaluation/test/{name}_table/path" for name in drawn} <= {name for row in part.history for name in row}
    assert part.summary["evaluation/test/macro/average_precision"] == pytest.approx(
        results.overall.macro["average_precision"].value
    )


def test_evaluation_is_logged_after_the_steps_of_the_training(planted, tracked):
    steps = [row["_step"] for part in read_parts(tracked["ids"]) for row in part.history]
    assert steps == sorted(set(steps))
