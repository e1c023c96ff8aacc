"""Data sets by name, folders of pictures, and the data module that serves them to a trainer."""
