"""`fenhe bench`: speed and quality next to other programs, as ratios."""
