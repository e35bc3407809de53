"""A bundle as a model repository of NVIDIA's Triton Inference Server: each encoder, the fusion, and the glue that joins them."""
