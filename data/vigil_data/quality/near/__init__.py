"""Fingerprints of texts, images and audio, and the search for near-duplicates among them."""
