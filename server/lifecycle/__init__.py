"""What changes while the server runs: students, settings and keys."""
