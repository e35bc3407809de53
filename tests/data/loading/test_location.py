"""Datasets in an object store, against a local server that speaks S3: they are read as those in a folder, and never written."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.location import is_remote, location


@pytest.fixture(scope="module")
def items():
    file = io.BytesIO()
    Image.effect_noise((20, 20), 50).save(file, "PNG")
    return [
        Item(f"i{n}", (f"text {n}",), (file.getvalue(),), (), {"a": float(n % 2)}, {"split": "train" if n < 30 else "validation"})
        for n in range(40)
    ]


@pytest.fixture(scope="module")
def stored(bucket, items, tmp_path_factory):
    """Give the folder of a dataset, and the address of its copy in a bucket."""
    folder = tmp_path_factory.mktemp("location") / "dataset"
    write(folder, items)
    return folder, bucket(folder, "sets/posts")


def test_location_is_the_address_after_pathlib():
    assert is_remote("s3://bucket/sets/posts")
    assert is_remote(Path("s3://bucket/sets/posts"))
    assert location(Path("s3://bucket/sets") / "items.lance") == "s3://bucket/sets/items.lance"
    assert not is_remote("datasets/s3:/posts")
    assert location("datasets/posts") == "datasets/posts"


def test_dataset_in_a_bucket_is_read_as_one_in_a_folder(stored):
    folder, address = stored
    local, remote = Dataset(folder), Dataset(address)
    assert remote.version == local.version
    assert remote.splits() == local.splits()
    assert remote.rows("train", where="id <> 'i3'").tolist() == local.rows("train", where="id <> 'i3'").tolist()
    assert remote.take([7, 0, 31]) == local.take([7, 0, 31])
    assert np.array_equal(remote.targets(["a"]), local.targets(["a"]))
    assert np.array_equal(remote.facts([3]), local.facts([3]))
    assert remote.quarantine().num_rows == 0


def test_dataset_in_a_bucket_is_not_written(stored, items):
    with pytest.raises(UserError, match=r"s3://.*: datasets in an object store are only read; write to a folder"):
        write(stored[1], items, append=True)
    with pytest.raises(UserError, match="are only read"):
        write("s3://elsewhere/new", items)
    assert not Path("s3:").exists()


def test_dataset_that_is_absent_or_cannot_be_reached_is_named(stored, monkeypatch):
    address = stored[1].replace("posts", "nothing")
    with pytest.raises(UserError, match=f"{address} is not a dataset"):
        Dataset(address)
    monkeypatch.setitem(os.environ, "AWS_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"s3://other/sets/items.lance: cannot be read"):
        Dataset("s3://other/sets")
