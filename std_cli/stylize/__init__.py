"""One request, from names to a finished file."""
