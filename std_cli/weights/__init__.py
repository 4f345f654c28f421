"""Names to files, checked before a weight is loaded."""
