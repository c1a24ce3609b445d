"""`fenhe bench distill`: training exits beside a plain distillation loop."""
