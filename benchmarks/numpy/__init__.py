"""Batch norm on NumPy arrays: xhat beside PyTorch, JAX and Numba, and beside the speed of memory."""
