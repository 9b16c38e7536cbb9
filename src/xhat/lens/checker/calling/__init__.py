"""How the code under test is called, and one run of it.

names                     the usual names of every quantity
adapter                   which parameter and which result is which quantity
modules                   layers: a class with a forward, and perhaps a backward, as two functions
construction, state       the arguments of a layer's constructor, and where a layer keeps its arrays
arrays                    conversion to and from NumPy, PyTorch and JAX
runs, runner              what a run is given and gives; one run on one test batch
"""
