"""Export, the bundle, the torch-free runtime and batch scoring."""
