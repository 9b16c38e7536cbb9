"""One batch on several processes: what its exchanges cost, measured and modelled."""
