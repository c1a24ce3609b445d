"""Which sequences run in the next step, in which slots, and which cached prefix each begins with."""
