"""What happens to one generation request, from its body to the bytes of its answer."""
