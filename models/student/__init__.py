"""A student on disk: its folder, its manifest, and how it is cut into modules."""
