"""Normalization of text before tokenization, the same in training and in a bundle."""

from vigil_data.normalization.normalizer import Normalized, Normalizer

__all__ = ["Normalized", "Normalizer"]
