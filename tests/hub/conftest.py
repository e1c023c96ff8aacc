"""A home and a hub of its own for every test."""

from hub_server import place, there, web  # noqa: F401
