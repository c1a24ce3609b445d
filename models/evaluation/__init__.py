"""What a path is worth: rows to score, scores from log-probabilities, cost, and the tables and pages made of them."""
