"""What a recipe can say about the export; see docs/export.md."""
