"""Where a gradient comes from: the computational graph as data, and the three paths to the input in numbers.

graph      nodes, edges and local derivatives; forward evaluation and reverse traversal
summary    how much of the gradient each path carries, per channel
"""
