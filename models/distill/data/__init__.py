"""What a distillation reads: rows, cleaned and mixed, turned into training examples."""
