"""What is trained: the student's decoder and exits in torch."""
