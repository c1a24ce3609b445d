"""Which path a request takes: task classifier, policy and the pool of students. No HTTP, no forward pass."""
