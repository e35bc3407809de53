"""Erasure of items from a dataset, the ledger of what was erased, and retention."""
