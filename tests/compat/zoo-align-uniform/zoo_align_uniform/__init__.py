"""Alignment and uniformity for the pretext zoo. The task is in task.py; zoo finds it by the entry point in pyproject.toml."""
