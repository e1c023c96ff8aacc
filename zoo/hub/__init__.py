"""Hubs: folders and servers that hold checkpoints."""
