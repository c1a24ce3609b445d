"""Scores finished answers by the full path while there is time for it, and keeps what was found."""
