"""Bounded attacks on a server of one's own, and what they may do to it: `python -m loadtest.chaos`."""
