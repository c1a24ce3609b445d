"""Speed and quality beside peers, as ratios: `fenhe bench`."""
