"""Checkpoints: folders of safetensors and JSON, written and read."""
