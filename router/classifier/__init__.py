"""Which task a request is about."""
