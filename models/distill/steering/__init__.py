"""What changes while a run goes on: schedules, and the weights that losses and exits have in the next step."""
