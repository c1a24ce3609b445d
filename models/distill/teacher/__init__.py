"""The model to learn from, and what it says, kept on disk."""
