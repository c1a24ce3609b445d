"""The module engine: one thread that admits, schedules, runs, samples and commits."""
