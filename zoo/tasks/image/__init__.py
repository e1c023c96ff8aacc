"""Pretext tasks that read images, one file each."""
