"""Other people's tools beside xhat: `python -m benchmarks.tools`."""
