"""Data sets in tar files, larger than the memory."""
