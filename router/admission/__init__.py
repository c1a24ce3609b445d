"""Which requests start, wait or are refused."""
