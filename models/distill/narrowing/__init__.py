"""Narrow paths: which feed-forward neurons a path keeps, and how the rest of the model makes up for the others."""
