"""What is sent, and when: workloads, prompts, sessions and schedules. Knows nothing of HTTP or locust."""
