"""What is told about requests: metrics, log, traces."""
