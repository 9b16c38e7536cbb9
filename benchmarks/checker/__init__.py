"""The checker on implementations that are right and on mistakes planted in others: what it passes, refuses and finds."""
