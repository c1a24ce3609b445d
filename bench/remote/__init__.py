"""What a remote student adds to its upstream's latency."""
