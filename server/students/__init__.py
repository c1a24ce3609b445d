"""A student as it is served: its engine's events, admission and grammars."""
