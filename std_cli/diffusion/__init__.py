"""The networks at work."""
