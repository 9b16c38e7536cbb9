"""Batch normalization in Triton, for CUDA and ROCm: the engine beside the compiled kernels. No code.

Nothing here imports Triton until a tensor is to be computed with it: see `engine`.
"""
