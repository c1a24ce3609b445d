"""One file per endpoint: what its fields mean, and what its bodies look like."""
