"""Items in, tensors out: the dataset, its importers, the decoders, the sampler and the packed batch."""
