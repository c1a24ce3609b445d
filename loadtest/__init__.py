"""Load on a running server, over HTTP alone: nothing of fenhe is imported here."""
