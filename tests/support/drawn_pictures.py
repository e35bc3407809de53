"""Small pictures that perceptual hashes tell apart, and a sentence to make near-duplicates of."""

import io

import numpy as np
from PIL import Image

LONG = "The harbour market opens again on Saturday with fresh bread"


def png(seed: int, width: int = 160) -> bytes:
    """Return the picture of a seed, in some width."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (14, 18, 3), np.uint8))
    file = io.BytesIO()
    small.resize((180, 140), Image.Resampling.BICUBIC).resize((width, width * 7 // 9)).save(file, "PNG")
    return file.getvalue()
