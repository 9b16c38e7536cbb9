"""Every published architecture, folded: `python -m benchmarks.fold`."""
