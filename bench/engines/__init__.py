"""`fenhe bench engines` and `fenhe bench grammar`: the engine beside other engines."""
