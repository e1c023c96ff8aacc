"""Pretext tasks: one file each. The decorator in a file is its registration; nothing is imported here."""
