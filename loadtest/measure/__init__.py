"""What was seen of each request, and the figures that come of it. Each formula stands once, in `figures.py`."""
