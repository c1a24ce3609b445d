"""Settings: what they are, where they are read from, how they are explained."""
