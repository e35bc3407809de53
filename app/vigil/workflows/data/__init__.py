"""What joins datasets with runs and bundles."""
