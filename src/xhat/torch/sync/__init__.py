"""Batch normalization over several processes: frames (the exchange between ranks) -> merge (of their moments) -> layer.

Imports nothing, since the operators below the layers import `frames` and `merge`.
"""
