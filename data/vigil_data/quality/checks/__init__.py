"""The check of manifests and datasets: rows, labels, tokens, and every medium decoded completely."""
