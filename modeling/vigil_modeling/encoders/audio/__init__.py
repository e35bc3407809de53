"""Encoders of audio, with their feature extraction in the graph."""
