"""Answers that can be repeated: exact and similar questions, in process or in Redis."""
