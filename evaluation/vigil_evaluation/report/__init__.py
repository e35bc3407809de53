"""Self-contained HTML pages of an evaluation, a comparison and a functional suite."""
