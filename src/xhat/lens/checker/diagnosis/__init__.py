"""What is found about the code on one layout of its arrays.

plans, fit, eps           how the code is called so that its forward is right; its outputs on every test batch; its eps
search                    the smallest sets of mistakes that explain the outputs
diagnose, record          the diagnosis: how it is made, and what it holds
running, statistics       the running statistics, and those that a forward returns
evaluation                the outputs of evaluation
conditions, crossing      strides, equal calls and 16 bits; batches that cross the block sizes of kernels
unexplained, comparison   outputs that no known mistake explains; results beside the exact ones
"""
