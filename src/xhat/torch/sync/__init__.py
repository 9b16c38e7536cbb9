"""A batch on several processes: groups -> frames (the exchange) -> merge, shared_batch (one batch); names -> layer."""
