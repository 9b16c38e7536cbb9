"""Batch normalization on a GPU: verified against float64, then timed beside PyTorch, in one command."""
