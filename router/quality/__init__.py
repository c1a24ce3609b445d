"""What paths keep of the full path's quality on live traffic, and what follows from it for routing."""
