"""Fingerprints of texts, images and audio, and the search for near-duplicates among them."""

TEXT_JACCARD = 0.6
"""Least Jaccard index of the shingles of two near-duplicate texts by default."""

AUDIO_BIT_ERRORS = 0.25
"""Largest share of differing bits of two near-duplicate audio files by default: of the recordings of ESC-10 none but those of one
source is below 0.3, and another encoding is at 0.1 at most."""
