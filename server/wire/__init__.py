"""Bodies as they are on the wire: schemas, decoding, errors, server-sent events."""
