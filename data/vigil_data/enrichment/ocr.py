"""Words in pictures, read by RapidOCR with the models in its wheel; nothing is downloaded."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vigil_data.decode.image import decode_picture
from vigil_data.enrichment.engines import EngineError, Finding, Kind, model_hash
from vigil_data.items import Item, Modality

MAX_PIXELS = 89_478_485
"""Number of pixels of an image above which it is not read, as in a recipe's ``inputs.image.max_pixels``."""

_SHORT_SIDE = 320
"""Pixels to which the short side of a small picture is enlarged to find words. RapidOCR's default, 736, finds no more in pictures
of 100 to 800 pixels with words 12 to 30 pixels high, and takes 1 to 8 times as long."""

_MIN_SIDE, _MAX_ASPECT = 8, 8
"""Pixels of the short side below which a picture has no legible words; ratio of the sides from which on it gets a margin."""

_MODELS = {"Det": "*_det_*.onnx", "Cls": "*_cls_*.onnx", "Rec": "*_rec_*.onnx"}


class RapidOcr:
    """Reader of words in pictures: one text for each picture that has any, a line for each line of words.

    Args:
        min_confidence: lines with a lower confidence are left out.
        threads: threads of ONNX Runtime (default: all cores).

    Raises:
        ModuleNotFoundError: if RapidOCR is not installed.
    """

    kind: Kind = "ocr"
    name = "rapidocr"
    modality: Modality = "image"

    def __init__(self, min_confidence: float = 0.5, threads: int = -1) -> None:
        import rapidocr

        self._min_confidence = min_confidence
        folder = Path(rapidocr.__file__).parent / "models"
        models = {part: next(folder.glob(pattern)) for part, pattern in _MODELS.items()}
        self.identity = f"rapidocr {version('rapidocr')} model {model_hash(models.values())} confidence {min_confidence:g}"
        self._engine = rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.text_score": min_confidence,
                "Det.limit_side_len": _SHORT_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                **{f"{part}.model_path": str(path) for part, path in models.items()},  # a given file is not downloaded
            }
        )

    def __reduce__(self) -> tuple[type["RapidOcr"], tuple[float, int]]:
        return RapidOcr, (self._min_confidence, 1)  # on Ray, where a task has one CPU

    def __call__(self, item: Item) -> Finding:
        """Return the words in an item's pictures; see :class:`.Engine`."""
        return Finding([text for image in item.image if (text := self._read(image))])

    def _read(self, image: bytes) -> str:
        pixels_HWC = decode_picture(image, MAX_PIXELS)
        height, width, _ = pixels_HWC.shape
        if min(height, width) < _MIN_SIDE:
            return ""
        # A strip would be enlarged with its short side, to any length.
        least = max(height, width) // _MAX_ASPECT
        margins = ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0))
        pixels_HWC = np.pad(pixels_HWC, margins, constant_values=255)
        try:
            found: Any = self._engine(np.ascontiguousarray(pixels_HWC[:, :, ::-1]))  # OpenCV's order: blue first
        except Exception as error:  # it raises errors of OpenCV, ONNX Runtime and its own
            raise EngineError(f"rapidocr: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
        return "\n".join(line for text in found.txts or () if (line := text.strip()))
