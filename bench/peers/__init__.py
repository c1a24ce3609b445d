"""Other engines, as subjects of a bench."""
