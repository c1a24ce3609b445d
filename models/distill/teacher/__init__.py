"""The model to learn from, and its predictions, cached on disk."""
