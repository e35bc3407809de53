"""Suites of functional tests, written as YAML: words and templates in, items out, each with what is expected of it."""
