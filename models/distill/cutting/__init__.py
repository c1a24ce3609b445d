"""Where a decoder can be cut into modules, by its attention maps."""
