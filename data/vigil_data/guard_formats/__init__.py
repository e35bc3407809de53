"""Prompt formats of published guards, as YAML pages: their prompts, their answers, and what their categories mean."""
