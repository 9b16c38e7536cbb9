# What nanobind's stub generator can't infer: the types of the dicts' items.
_kernels\.(DTYPES|ACTIVATIONS|ACTIVATION_GRADS):
    \1: dict[str, int]
