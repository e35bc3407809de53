"""What a tracking service shows of evaluations: curves, tables, and examples by the content rule."""
