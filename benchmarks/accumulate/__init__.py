"""Memory and time of exact micro-batches."""
