"""The token cache: equal training and predictions, shared and resumable files, nothing stale, nothing left of erased items."""

import json
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lance
import numpy as np
import pytest
import torch
from tiny_run import as_text
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.token_cache import cache_lock, list_entries
from vigil_data.decode import Decoder
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_data.loading.batch import TOKENS, collate
from vigil_data.loading.token_files import TokenFile, TokenReader
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.token_cache import fill, plan
from vigil_training.tracking.metrics import is_exact
from vigil_training.trainer.callbacks import EarlyStopping
from vigil_training.trainer.fit import fit_recipe


class Stop(Exception):
    """Stops a run in these tests."""


@pytest.fixture
def dataset(material, tmp_path) -> Path:
    """The tiny dataset, with an image whose header alone is intact and a text of several passages."""
    source = Dataset(material / "dataset")
    items = source.take(source.rows())
    first = next(i for i, item in enumerate(items) if item.image and item.text and item.columns["split"] == "train")
    items[first] = replace(items[first], image=(items[first].image[0][:60],))
    long, columns = (" ".join(["cat"] * 60), "red"), {"split": "train", "language": "en"}
    items.append(Item("long", long, (), (), {"cat": 1.0}, columns, {"text": ("context", "body")}, ((1.0, 2.0), None)))
    write(tmp_path / "dataset", items)
    return tmp_path / "dataset"


@pytest.fixture
def recipe(make_recipe, dataset):
    """A function that makes a recipe with frozen encoders of text and images."""

    def recipe(frozen=("text", "image"), **changes):
        encoders = make_recipe().model.encoders.model_dump(mode="json", exclude_none=True)
        for modality in frozen:
            encoders[modality]["frozen"] = True
        defaults = {"data__dataset": str(dataset), "data__quarantine_limit": 0.05, "model__encoders": encoders}
        return make_recipe(**{**defaults, "training__token_cache": True, **changes})

    return recipe


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    """Batches of at most 16 items and files of two batches, so that the tiny dataset has several."""
    monkeypatch.setattr(plan, "BATCHES", plan.BATCHES.model_copy(update={"max_items": 16}))
    monkeypatch.setattr(plan, "BATCHES_PER_FILE", 2)


def metrics(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    # Tokens of the cache are not read, so their padding is not known.
    return [
        {k: v for k, v in line.items() if k == "step" or (is_exact(k) and not k.startswith("train/padding/"))} for line in lines
    ]


@pytest.mark.parametrize("frozen", [("text", "image"), ("image",)])
def test_fit_recipe_with_the_cache_trains_as_without(frozen, recipe, train, dataset, assert_same_run, tmp_path):
    changes = {"training__epochs": 2, "training__modality_dropout": {"text": 0.2, "image": 0.2}}
    plain = train(recipe(frozen, training__token_cache=False, **changes), tmp_path / "plain")
    cold = train(recipe(frozen, **changes), tmp_path / "cold")
    entries = list_entries(dataset)
    assert [entry.path.name.partition("-")[0] for entry in entries] == sorted(frozen)
    times = {path: path.stat().st_mtime_ns for entry in entries for path in entry.files}
    warm = train(recipe(frozen, **changes, data__workers=1), tmp_path / "warm")
    assert {path: path.stat().st_mtime_ns for entry in list_entries(dataset) for path in entry.files} == times
    assert_same_run(cold.path, warm.path)
    for expected, found in zip(metrics(plain), metrics(cold), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    refused = [[json.loads(line) for line in run.quarantine.read_text().splitlines()] for run in (plain, cold)]
    assert len(refused[0]) == 1
    assert refused[0] == refused[1]


def test_token_reader_reads_what_the_encoder_makes_of_each_item(recipe, train, dataset, tmp_path):
    run = train(recipe(training__max_steps=1), tmp_path / "run")
    model, opened = run.model("last").double(), Dataset(dataset)
    rows = np.random.default_rng(0).permutation(opened.rows("train"))
    for entry in list_entries(dataset):
        modality = entry.path.name.partition("-")[0]
        reader, decoder = TokenReader(entry.path, len(opened)), Decoder(run.recipe.inputs, ())
        segments = reader.read(rows)
        for place, item in enumerate(opened.take(rows, [modality])):
            found = segments.inputs[TOKENS][segments.item == place]
            packed = decoder.decode_all([item])
            assert bool(packed.refused) == (int(rows[place]) in reader.refused)
            own = collate(packed).segments.get(modality)
            assert len(found) == (0 if own is None else len(own.item))
            if own is not None:
                with torch.no_grad():
                    inputs = {k: v.double() if v.is_floating_point() else v for k, v in own.inputs.items()}
                    expected = model.encoder(modality)(**inputs)
                torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
                assert segments.role[segments.item == place].tolist() == own.role.tolist()
                torch.testing.assert_close(segments.time[segments.item == place], own.time)


def test_fit_recipe_resumes_bitwise_after_the_cache_was_cleared(recipe, train, dataset, assert_same_run, monkeypatch, tmp_path):
    train(recipe(), tmp_path / "undisturbed")

    def stopping(self, trainer, module):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStopping, "on_validation_end", stopping)
        with pytest.raises(Stop):
            train(recipe(), tmp_path / "run")
    shutil.rmtree(dataset / "token_cache")
    train(recipe(), tmp_path / "run")
    assert "resuming" in (tmp_path / "run" / "train.log").read_text()
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


def test_fill_continues_where_it_was_stopped(recipe, dataset, monkeypatch, tmp_path):
    encode, calls, preemption = fill.encode_rows, [], Preemption()

    def stopping(rows, *rest):
        calls.append(len(rows))
        preemption.asked = "SIGTERM" if len(calls) == 5 else None
        return encode(rows, *rest)

    monkeypatch.setattr(fill, "encode_rows", stopping)
    with pytest.raises(Preempted, match="stopped by SIGTERM while tokens were computed; the same command resumes"):
        fit_recipe(recipe(), as_text(recipe()), tmp_path / "run", preemption=preemption)
    kept = [path for entry in list_entries(dataset) for path in entry.files]
    assert len(calls) == 5
    assert len(kept) == 2
    (kept[0].parent / ".00007.abcdefgh.partial.safetensors").write_bytes(b"half")
    fit_recipe(recipe(), as_text(recipe()), tmp_path / "run")
    total = sum(len(TokenFile.read(path).row) for entry in list_entries(dataset) for path in entry.files)
    assert sum(calls) == total + calls[4]  # Only the batch of the file that was not complete is encoded twice.
    assert not list(kept[0].parent.glob(".*"))


@pytest.mark.parametrize(
    "changes",
    [{"inputs__image": {"size": 16, "fit": "pad"}}, {"seed": 8}, {"training__precision": "bf16", "same": True}],
    ids=["input", "weights", "precision"],
)
def test_plan_keeps_apart_what_tokens_depend_on(changes, recipe, train, dataset, tmp_path):
    changes = dict(changes)
    same = changes.pop("same", False)
    train(recipe(("image",), training__max_steps=1), tmp_path / "one")
    before = {entry.path: entry.files for entry in list_entries(dataset)}
    train(recipe(("image",), training__max_steps=1, **changes), tmp_path / "other")
    after = {entry.path: entry.files for entry in list_entries(dataset)}
    assert {path: after[path] for path in before} == before
    assert len(after) == (1 if same else 2)


def test_fill_deletes_entries_of_versions_that_no_longer_exist(recipe, train, dataset, tmp_path):
    train(recipe(training__max_steps=1), tmp_path / "one")
    old = {entry.path for entry in list_entries(dataset)}
    table = lance.dataset(str(dataset / "items.lance"))
    table.delete("id = 'train-3'")
    train(recipe(training__max_steps=1), tmp_path / "two")
    assert old < {entry.path for entry in list_entries(dataset)}  # version 1 still exists, and its runs can resume
    table = lance.dataset(str(dataset / "items.lance"))
    table.optimize.compact_files(materialize_deletions_threshold=0.0)
    lance.dataset(str(dataset / "items.lance")).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    train(recipe(training__max_steps=1), tmp_path / "three")
    assert not old & {entry.path for entry in list_entries(dataset)}


def test_fill_waits_for_another_run(recipe, train, dataset, monkeypatch, tmp_path):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            lock.__exit__(None, None, None)

    monkeypatch.setattr(fill, "time", SimpleNamespace(sleep=sleep))
    lock = cache_lock(dataset)
    lock.__enter__()
    train(recipe(training__max_steps=1), tmp_path / "run")
    assert len(waits) == 3
    assert (tmp_path / "run" / "train.log").read_text().count("is being filled or cleared by process") == 1


def test_token_reader_names_a_file_that_cannot_be_read(recipe, train, dataset, tmp_path):
    train(recipe(training__max_steps=1), tmp_path / "run")
    path = list_entries(dataset)[0].files[0]
    os.truncate(path, 40)
    with pytest.raises(Failure, match=r"safetensors: cannot be read .*; delete the token cache with"):
        TokenReader(path.parent, 5)


def test_recipe_refuses_the_cache_of_tokens_that_change(recipe):
    with pytest.raises(ValueError, match=r"training\.token_cache: no encoder has frozen: true"):
        recipe(())
    with pytest.raises(ValueError, match=r"training\.token_cache: no encoder has frozen: true"):
        recipe((), model__encoders__text__frozen=1)
    with pytest.raises(ValueError, match=r"token_cache: data\.augmentation\.text changes what the frozen encoder reads"):
        recipe(("text",), data__augmentation={"text": {"perturb": {"kinds": ["casing"]}}})
    with pytest.raises(ValueError, match=r"token_cache: the ranks of strategy\.stage 3 gather weights in another order"):
        recipe(strategy={"kind": "deepspeed", "stage": 3, "devices": 2})
    assert recipe(("image",), data__augmentation={"text": {"perturb": {"kinds": ["casing"]}}})


def test_fill_refuses_segments_with_different_numbers_of_tokens():
    parts = [TokenFile(np.arange(1), np.ones(1, np.int64), {TOKENS: torch.zeros(1, tokens, 4)}, {}) for tokens in (2, 3)]
    with pytest.raises(UserError, match=r"model\.encoders\.text gives segments different numbers of tokens"):
        fill._join(parts, 4, "text")


def test_data_cache_shows_and_clears_the_cache(recipe, train, dataset, tmp_path):
    def cache(*options):
        result = CliRunner().invoke(build(), ["data", "cache", str(dataset), *options], catch_exceptions=False)
        return result.output

    assert cache() == f"{dataset} has no token cache\n"
    train(recipe(training__max_steps=1), tmp_path / "run")
    (entry,) = [entry for entry in list_entries(dataset) if entry.path.name.startswith("image")]
    assert f"{entry.path.name}  timm vit_tiny_patch16_224 random  1      {len(entry.files):>7}" in cache()
    assert "deleted 0." in cache("--clear")
    assert not (dataset / "token_cache").exists()
    with cache_lock(dataset), pytest.raises(UserError, match="is being filled or cleared by process"):
        cache("--clear")
