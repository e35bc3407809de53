"""Batch invariance: a decision may depend on the item alone, so a backend must give an item the same result in any batch.

Items of a comparison are run again, each alone and shuffled in batches of several sizes, and compared with the same backend's
outputs in their first batches. A quantization with one scale for the whole batch fails this, and so would a mask that leaks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_data.loading.packing import Decoded, DecodedItem, PackedSegments, pack
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import BatchInvariance, Tolerance
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import Backend, compare_outputs, run_backend

MAX_ITEMS = 24
"""Items that are run again: all extremes, and the others evenly spaced; dependence on the batch shows on most items."""
SHUFFLED_SIZES = (2, 4, 8)
"""Sizes of the shuffled batches; one more holds the other items."""


class Rearrangement(NamedTuple):
    """The same items in other batches.

    Attributes:
        cases: the other batches.
        sources: for each item of each batch, its first batch and its row there.
    """

    cases: Sequence[Case]
    sources: Sequence[Sequence[tuple[int, int]]]


def rearrange(cases: Sequence[Case]) -> Rearrangement:
    """Put items of some batches into others: each alone, and shuffled in batches of :data:`SHUFFLED_SIZES`."""
    places = [(number, row) for number, case in enumerate(cases) for row in range(len(case.items))]
    extreme = [place for place in places if cases[place[0]].golden and len(cases[place[0]].items) == 1][:MAX_ITEMS]
    others = [place for place in places if place not in set(extreme)]
    spread = np.unique(np.linspace(0, len(others) - 1, min(len(others), MAX_ITEMS - len(extreme))).astype(np.int64))
    chosen = [*extreme, *(others[place] for place in spread)]
    order = np.random.default_rng(0).permutation(len(chosen))
    shuffled = [[chosen[place] for place in batch] for batch in np.split(order, np.cumsum(SHUFFLED_SIZES)) if len(batch)]
    sources = [*([place] for place in chosen), *shuffled]
    return Rearrangement([_batch(cases, batch) for batch in sources], sources)


def measure_invariance(
    backend: Backend,
    outputs: Sequence[NDArray[np.floating]],
    rearrangement: Rearrangement,
    model: ExportedModel,
    progress: ProgressCallback | None = None,
) -> BatchInvariance:
    """Run items in other batches and compare the results with those of their first batches.

    Args:
        backend: what runs.
        outputs: its raw probabilities ``[N, L]`` of each of the batches that were rearranged.
        rearrangement: the other batches.
        model: its calibration, thresholds and policy decide.
        progress: called with the backend's name, batches done, and all batches.
    """
    expected = [np.stack([outputs[number][row] for number, row in batch]) for batch in rearrangement.sources]
    found = run_backend(backend, rearrangement.cases, expected, progress)
    parity = compare_outputs(backend._replace(decide=None), found, rearrangement.cases, expected, model, tolerance=Tolerance(0))
    return BatchInvariance(
        batches=parity.cases,
        items=len({place for batch in rearrangement.sources for place in batch}),
        max_difference=parity.max_difference,
        flips=parity.flips,
        on_threshold=parity.on_threshold,
        action_flips=parity.action_flips,
    )


def _batch(cases: Sequence[Case], batch: Sequence[tuple[int, int]]) -> Case:
    items = tuple(cases[number].items[row] for number, row in batch)
    name = f"{items[0].id} alone" if len(batch) == 1 else f"shuffled x {len(batch)}"
    return Case(name, items, pack([_decoded(cases[number], row) for number, row in batch]), golden=False)


def _decoded(case: Case, row: int) -> DecodedItem:
    """Return one item of a packed batch, without the padding that other items caused."""
    segments: dict[Modality, Decoded] = {}
    for modality, packed in case.packed.segments.items():
        places = np.flatnonzero(packed.item == row).tolist()
        if places:
            arrays = [_without_padding(packed, place) for place in places]
            segments[modality] = Decoded(arrays, [packed.spans[place] for place in places])
    return DecodedItem(case.packed.ids[row], segments, np.empty(0, np.float32), {})


def _without_padding(packed: PackedSegments, place: int) -> dict[str, NDArray[np.generic]]:
    mask = packed.inputs.get("attention_mask")
    used = None if mask is None else 1 + int(np.flatnonzero(mask[place]).max(initial=0))
    return {name: array[place, ..., :used] for name, array in packed.inputs.items()}
