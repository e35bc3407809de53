"""Reviewers' decisions: the table that keeps them, and the rules that make targets of them."""
