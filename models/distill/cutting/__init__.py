"""Where a decoder is cut into modules, by what its layers do, and which exits are trained behind the cuts."""
