"""The checker on right implementations, and on mistakes planted in others: what it passes, refuses and finds."""
