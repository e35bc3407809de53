"""Encoders, fusion, heads and losses, as plain nn.Modules."""
