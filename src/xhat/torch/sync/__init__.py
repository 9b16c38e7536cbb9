"""Batch normalization over several processes: frames (the exchange) -> merge, shared_batch (one batch) -> layer."""
