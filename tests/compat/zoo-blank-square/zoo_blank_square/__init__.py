"""The pretext task blank-square, in task.py."""
