"""Train, evaluate and serve multimodal content-safety models."""
