"""What training minimises, per exit."""
