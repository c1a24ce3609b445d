"""`fenhe bench router` and `fenhe bench similar`: decisions and the semantic cache."""
