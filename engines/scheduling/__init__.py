"""Who runs in the next step, in which slot, and which cached prefix they begin with."""
