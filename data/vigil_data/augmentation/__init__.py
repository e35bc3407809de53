"""Augmentation of training items: each draw is a pure function of the seed, the epoch and the item."""
