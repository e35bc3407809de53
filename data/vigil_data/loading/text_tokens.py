"""Numbers of tokens of the items' texts, by which batches are planned with little padding.

Characters predict tokens roughly: in English posts, a batch of texts of equal length in characters is a third padding. So texts
are tokenized once for each version of a dataset and each tokenizer, and the numbers are kept in ``DATASET/token_counts/``, one
32-bit number for each row.
"""

import hashlib
import io
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from vigil_data.dataset.dataset import Dataset
from vigil_data.decode.text import MAX_CHARACTERS_PER_TOKEN, load_normalizer, load_tokenizer, tokenizer_definition
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import locked, remove, sha256_json, write_file
from vigil_data.items import BODY
from vigil_data.loading.location import is_remote
from vigil_data.loading.sampler import Rows, costs
from vigil_data.progress import Progress
from vigil_data.specs import Cost, Inputs, TextInput

FOLDER = "token_counts"
"""Folder of a dataset that keeps the numbers; everything in it can be deleted at any time."""


def row_costs(dataset: Dataset, cost: Cost, inputs: Inputs, *parts: Rows) -> list[NDArray[np.float64]]:
    """Return the costs of rows of a dataset, float64 ``[n]`` for each part; texts are tokenized if tokens cost something.

    Args:
        dataset: the dataset.
        cost: cost per unit.
        inputs: modalities that are read; the others cost nothing.
        parts: row numbers, each ``[n]``, such as those of a split.

    Raises:
        UserError: if the tokenizer cannot be loaded.
    """
    tokens_N = text_tokens(dataset, inputs.text) if inputs.text is not None and cost.token else None
    return [costs(dataset.facts(rows), cost, inputs, None if tokens_N is None else tokens_N[rows]) for rows in parts]


def keep_text_tokens(dataset: Dataset, cost: Cost, inputs: Inputs) -> None:
    """Count and keep the numbers that :func:`row_costs` needs, so that other ranks read them; nothing where they cannot be kept.

    Raises:
        UserError: if the tokenizer cannot be loaded.
    """
    if inputs.text is not None and cost.token and not is_remote(dataset.path):
        text_tokens(dataset, inputs.text)


def text_tokens(dataset: Dataset, spec: TextInput) -> NDArray[np.int32]:
    """Return the number of tokens of each row's passages, special tokens included, int32 ``[N]``.

    It is that of the passages that :class:`vigil_data.decode.Decoder` makes of the row's texts. The numbers are kept next to the
    dataset, unless it cannot be written.

    Raises:
        UserError: if the tokenizer cannot be loaded.
    """
    if is_remote(dataset.path):
        return _count(dataset, spec)
    folder = dataset.path / FOLDER
    path = folder / f"{_version_digest(dataset, dataset.version)}-{_spec_digest(spec)}.npy"
    if (kept_N := _read(path, len(dataset))) is not None:
        return kept_N
    counted_N = _count(dataset, spec)
    # Without the lock, somebody else writes the same numbers.
    with suppress(Failure, UserError), locked(folder / "lock", f"{folder} is being written by {{owner}}"):
        valid = {_version_digest(dataset, version) for version in dataset.written()}
        for old in folder.glob("*.npy"):
            if old.name.split("-")[0] not in valid:
                remove(old)
        stream = io.BytesIO()
        np.save(stream, counted_N)
        write_file(path, stream.getvalue())
    return counted_N


def _version_digest(dataset: Dataset, version: int) -> str:
    return sha256_json([version, dataset.written().get(version)])[:12]


def _spec_digest(spec: TextInput) -> str:
    settings = spec.model_dump(mode="json", exclude={"tokenizer"})
    tokenizer = hashlib.sha256(tokenizer_definition(spec.tokenizer).encode()).hexdigest()
    return sha256_json([tokenizer, settings])[:12]


def _read(path: Path, rows: int) -> NDArray[np.int32] | None:
    try:
        kept_N: NDArray[np.int32] = np.load(path)
    except (OSError, ValueError, EOFError):  # absent, or damaged
        return None
    return kept_N if kept_N.shape == (rows,) else None


def _count(dataset: Dataset, spec: TextInput) -> NDArray[np.int32]:
    tokenizer, normalize = load_tokenizer(spec), load_normalizer(spec)
    longest = MAX_CHARACTERS_PER_TOKEN * spec.max_tokens * (spec.max_passages + 2)  # enough for all passages of usual text
    columns = ["text", "text_roles"] if "text_roles" in dataset.schema.names else ["text"]
    counted = [np.empty(0, np.int32)]
    done = 0
    with Progress("counting tokens", unit="items") as progress:
        for batch in dataset.batches(columns, rows=4096):
            texts, bounds = [], [0]
            absent = [None] * batch.num_rows
            roles = batch["text_roles"].to_pylist() if len(columns) > 1 else absent
            for of, role in zip(batch["text"].to_pylist(), roles, strict=True):
                named = zip(of or (), role or [BODY] * len(of or ()), strict=True)
                read = [text for text, name in named if text.strip() and (spec.roles is None or name in spec.roles)]
                texts += [normalize(text[:longest]).text for text in read]
                bounds.append(len(texts))
            lengths = [
                _passage_lengths(encoding)
                for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=spec.special_tokens)
            ]
            kept = [list(chain.from_iterable(lengths[a:b]))[: spec.max_passages] for a, b in pairwise(bounds)]
            counted.append(np.array(list(map(sum, kept)), np.int32))
            done += batch.num_rows
            progress("counting tokens", done, len(dataset))
    return np.concatenate(counted)


def _passage_lengths(encoding: Encoding) -> list[int]:
    """Return the number of tokens of each passage that has text."""
    passages = [encoding, *encoding.overflowing]
    return [len(passage.ids) for passage in passages if not all(passage.special_tokens_mask)]
