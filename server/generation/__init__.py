"""The way of one request from body to bytes."""
