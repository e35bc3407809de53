"""Golden cases: made-up items in the bundle, with the arrays that they decode to and the probabilities of the trained model.

Whoever serves a bundle elsewhere (another machine, Triton, C++) can check both halves of the way: bytes to arrays, arrays to
probabilities.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Item, Modality
from vigil_data.loading.packing import Packed, PackedSegments, pack
from vigil_data.settings import Settings
from vigil_serving.bundle.manifest import GOLDEN_INPUTS, GOLDEN_ITEMS, GOLDEN_OUTPUTS, golden_outputs
from vigil_serving.parity.cases import Case

# Other versions of the decoding libraries may round differently: one grey level of 255, and a sound 80 dB down.
PIXELS_TOLERANCE = 1
WAVEFORM_TOLERANCE = 1e-4


def write(
    folder: Path,
    cases: Sequence[Case],
    expected: Sequence[NDArray[np.floating]],
    given: Mapping[str, Sequence[NDArray[np.floating]]] | None = None,
) -> None:
    """Write the golden ones among the cases.

    Args:
        folder: the bundle's folder.
        cases: all cases.
        expected: of each case, the trained model's probabilities ``[N, L]``.
        given: variant to what it gave for each case at the export, where that is less exact than float32.
    """
    (folder / GOLDEN_ITEMS).parent.mkdir(parents=True, exist_ok=True)
    inputs = {}
    with (folder / GOLDEN_ITEMS).open("w", encoding="utf-8") as file:
        for case in cases:
            if not case.golden:
                continue
            file.write(
                json.dumps({"case": case.name, "items": [_to_json(item) for item in case.items]}, ensure_ascii=False) + "\n"
            )
            for modality, segments in case.packed.segments.items():
                for name, array in {"item": segments.item, **segments.inputs}.items():
                    inputs[f"{case.name}/{modality}/{name}"] = array
    np.savez_compressed(folder / GOLDEN_INPUTS, allow_pickle=False, **inputs)
    for path, found in {
        GOLDEN_OUTPUTS: expected,
        **{golden_outputs(variant): found for variant, found in (given or {}).items()},
    }.items():
        kept = {case.name: p_NL.astype(np.float32) for case, p_NL in zip(cases, found, strict=True) if case.golden}
        np.savez_compressed(folder / path, allow_pickle=False, **kept)


def read_given(folder: Path, cases: Sequence[Case], variant: str) -> list[NDArray[np.float32]] | None:
    """What a variant gave for the golden cases at the export; ``None`` if that is the trained model's own output.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / golden_outputs(variant)
    if not path.is_file():
        return None
    try:
        with np.load(path) as outputs:
            return [outputs[case.name] for case in cases]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error}); export the bundle again") from None


def read(folder: Path) -> tuple[list[Case], list[NDArray[np.float32]]]:
    """Read golden cases with their expected probabilities ``[N, L]``.

    Raises:
        UserError: if the files are missing or damaged.
    """
    try:
        with np.load(folder / GOLDEN_INPUTS) as inputs, np.load(folder / GOLDEN_OUTPUTS) as outputs:
            arrays, expected = dict(inputs), dict(outputs)
        lines = [json.loads(line) for line in (folder / GOLDEN_ITEMS).read_text(encoding="utf-8").splitlines()]
        cases = [_case(line["case"], tuple(_from_json(item) for item in line["items"]), arrays) for line in lines]
        return cases, [expected[case.name] for case in cases]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: the golden cases cannot be read ({type(error).__name__}: {error}); export the bundle again"
        ) from None


def decoding_differences(cases: Sequence[Case], inputs: Settings) -> list[str]:
    """Decode the golden items here and compare with the arrays that they decoded to at the export.

    Args:
        cases: golden cases.
        inputs: the bundle's decoding facts.

    Returns:
        A line for each array that differs by more than rounding.
    """
    decoder = Decoder(inputs, ())
    return [line for case in cases for line in _differences(case, decoder)]


def _differences(case: Case, decoder: Decoder) -> Iterator[str]:
    try:
        here = pack([decoder.decode(item) for item in case.items])
    except Undecodable as error:
        yield f"{case.name}: an item cannot be decoded here: {error}"
        return
    for modality in MODALITIES:
        at_export, now = case.packed.segments.get(modality), here.segments.get(modality)
        if at_export is None and now is None:
            continue
        if at_export is None or now is None or not np.array_equal(at_export.item, now.item):
            yield f"{case.name}: {modality} decodes to other segments than at the export"
            continue
        for name, array in at_export.inputs.items():
            if not _same(array, now.inputs[name]):
                yield f"{case.name}: {modality} decodes to other {name} than at the export"


def _same(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype == np.uint8:
        return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max(initial=0)) <= PIXELS_TOLERANCE
    if a.dtype == np.float32:
        return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)) <= WAVEFORM_TOLERANCE
    return np.array_equal(a, b)


def _case(name: str, items: tuple[Item, ...], arrays: dict[str, NDArray[np.generic]]) -> Case:
    segments: dict[Modality, PackedSegments] = {}
    for modality in MODALITIES:
        prefix = f"{name}/{modality}/"
        found = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        if found:
            segments[modality] = PackedSegments(found.pop("item").astype(np.int64), found, ())
    return Case(
        name, items, Packed(tuple(item.id for item in items), segments, np.empty((len(items), 0), np.float32)), golden=True
    )


def _to_json(item: Item) -> dict[str, object]:
    media = {m: [base64.b64encode(medium).decode("ascii") for medium in getattr(item, m)] for m in ("image", "audio")}
    return {"id": item.id, "text": list(item.text), **media}


def _from_json(value: dict[str, list[str]]) -> Item:
    image, audio = (tuple(base64.b64decode(medium) for medium in value[m]) for m in ("image", "audio"))
    return Item(str(value["id"]), tuple(value["text"]), image, audio)
