"""`archy`: the terminal door."""

from market.cli.main import main

__all__ = ["main"]
