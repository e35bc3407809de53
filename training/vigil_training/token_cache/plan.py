"""Plan of the token cache: what tokens depend on, and which files of them a run needs."""

import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.token_cache import CacheEntry, open_entry
from vigil_data.decode.text import load_tokenizer
from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.sampler import Rows, costs, sequence
from vigil_data.specs import AudioInput, BatchPlan, ImageInput, Inputs, TextInput
from vigil_modeling.encoders import Encoder, tokens_per_segment
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.recipe.recipe import Recipe

log = logging.getLogger("vigil.data")

FORMAT = 1
"""Version of the files and of how rows are divided among them."""

BATCHES = BatchPlan(budget=4096, max_items=256)
"""Items that an encoder sees together. It does not depend on the recipe, nor on what a run needs, so that a file that is computed
again is bitwise the same."""

BATCHES_PER_FILE = 16
CHARACTERS_PER_TOKEN = 4
LIBRARIES = ("torch", "transformers", "timm", "torchaudio", "tokenizers", "pillow", "soundfile", "soxr")
NOT_IN_TOKENS = {"frozen", "frozen_dtype", "unfreeze", "lora", "lr_factor", "layer_decay"}
"""Keys of an encoder on which its tokens do not depend."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Tokens of one modality that a run reads.

    Attributes:
        modality: the modality.
        entry: where they are kept.
        files: rows of each file, in the batches in which they are encoded.
        needed: numbers of the files with a row that the run reads.
        file_bytes: estimated size of each file.
    """

    modality: Modality
    entry: CacheEntry
    files: Sequence[Sequence[Rows]]
    needed: Sequence[int]
    file_bytes: Sequence[int]

    def path(self, number: int) -> Path:
        """Return the path of a file."""
        return self.entry.path / f"{number:05d}.safetensors"

    def missing(self) -> list[int]:
        """Return the numbers of the needed files that are not there."""
        return [number for number in self.needed if not self.path(number).is_file()]

    def describe(self) -> str:
        """Return one line on what is there, and how large the rest is."""
        items = sum(len(batch) for number in self.needed for batch in self.files[number])
        there, size = len(self.needed) - len(self.missing()), self.missing_bytes
        rest = f"; about {size / 1e6:,.3g} MB will be written" if size else ""
        return f"token cache: {self.modality} of {items:,} items, {there} of {len(self.needed)} files in {self.entry.path}{rest}"

    @property
    def missing_bytes(self) -> int:
        """Estimated size of the needed files that are not there."""
        return sum(self.file_bytes[number] for number in self.missing())


def plan_token_cache(recipe: Recipe, model: MultimodalModel, version: int, device: torch.device) -> list[CachePlan]:
    """Return what a run reads from the token cache: the training and validation rows of each frozen encoder.

    Args:
        recipe: recipe of the run.
        model: its model, with the weights of the encoders.
        version: version of the dataset.
        device: where encoders run.
    """
    dataset = Dataset(Path(recipe.data.dataset), version)
    rows = np.union1d(dataset.rows(recipe.data.train, recipe.data.where), dataset.rows(recipe.data.validation))
    facts_N3 = dataset.facts()
    splits = np.array([split or "" for split in dataset.table(["split"])["split"].to_pylist()], dtype=object)
    plans = []
    for modality in MODALITIES:
        spec = getattr(recipe.model.encoders, modality)
        if spec is None or spec.frozen is not True or modality in recipe.model.uncached:
            continue
        inputs = Inputs(**{modality: getattr(recipe.inputs, modality)})
        encoder = model.encoder(modality)
        key = {
            "format": FORMAT,
            "modality": modality,
            "version": version,
            "written": dataset.written()[version],
            "input": getattr(inputs, modality).model_dump(mode="json", exclude={"tokenizer"}),
            "tokenizer": _tokenizer_digest(inputs.text),
            "encoder": spec.model_dump(mode="json", exclude=NOT_IN_TOKENS),
            "weights": weights_digest(encoder),
            "device": device.type,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        files = divide(facts_N3, splits, inputs)
        token_bytes = 4 * encoder.width * tokens_per_segment(encoder)
        segments_N = estimate_segments(facts_N3, inputs)
        plans.append(
            CachePlan(
                modality,
                open_entry(dataset.path, modality, key),
                files,
                [number for number, batches in enumerate(files) if np.isin(np.concatenate(batches), rows).any()],
                [int(sum(segments_N[batch].sum() * token_bytes + 16 * len(batch) for batch in batches)) for batches in files],
            )
        )
    for plan in plans:
        log.info("%s", plan.describe())
    return plans


def divide(facts_N3: NDArray[np.float64], splits: NDArray[np.object_], inputs: Inputs) -> list[tuple[Rows, ...]]:
    """Divide the rows of a dataset into files, split by split, and those of a file into batches of nearly equal length.

    Args:
        facts_N3: characters, images and seconds of each row.
        splits: the split of each row.
        inputs: the modality that is encoded.
    """
    costs_N = costs(facts_N3, BATCHES.cost, inputs)
    files: list[tuple[Rows, ...]] = []
    for split in sorted(set(splits)):
        rows = np.flatnonzero(splits == split).astype(np.int64)
        batches = [rows[batch] for batch in sequence(costs_N[rows], BATCHES)]
        files += [tuple(batches[start : start + BATCHES_PER_FILE]) for start in range(0, len(batches), BATCHES_PER_FILE)]
    return files


def estimate_segments(facts_N3: NDArray[np.float64], inputs: Inputs) -> NDArray[np.float64]:
    """Return about how many segments of one modality each row has, ``[N]``."""
    total_N = np.zeros(len(facts_N3))
    for spec, size_N in zip((inputs.text, inputs.image, inputs.audio), facts_N3.T, strict=True):
        match spec:
            case TextInput():
                step = CHARACTERS_PER_TOKEN * (spec.max_tokens - spec.overlap)
                total_N += np.minimum(np.ceil(size_N / step), spec.max_passages)
            case ImageInput():
                total_N += np.minimum(size_N, spec.max_images)
            case AudioInput():
                total_N += np.minimum(np.ceil(size_N * spec.rate / spec.hop_samples), spec.max_windows)
    return total_N


def weights_digest(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's parameters and buffers, wherever they come from."""
    digest = hashlib.sha256()
    for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_digest(text: TextInput | None) -> str | None:
    return None if text is None else hashlib.sha256(load_tokenizer(text).to_str().encode()).hexdigest()
