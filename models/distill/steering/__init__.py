"""What changes while training runs: schedules, weights of losses, watching the transfer."""
