"""Timing models against each other: in turns, each in its own process, their outputs compared."""
