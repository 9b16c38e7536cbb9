"""What is right: the exact results, and the rounding that is allowed.

probes                    the test batches
steps, reference          the steps of both passes as data, and computed, with an optional fault in each
exact                     which exact step an array of any shape equals
conventions               what differs from our definition and is no mistake
bounds, rounding          the rounding of careful code, and the rounding mistakes
"""
