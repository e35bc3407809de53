"""Guards: language models that read a label's policy text and an item, and answer yes or no."""
