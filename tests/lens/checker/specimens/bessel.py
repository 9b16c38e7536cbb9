"""The N - 1 variant: the variance divides by n - 1 in the forward, and so does its path. Right, by its convention."""

eps = 1e-5


def bn_forward(hprebn, bngain, bnbias):
    """Normalise by the unbiased variance; parameters have the shape (1, C)."""
    n = hprebn.shape[0]
    bnmeani = 1 / n * hprebn.sum(0, keepdim=True)
    bndiff = hprebn - bnmeani
    bnvar = 1 / (n - 1) * (bndiff**2).sum(0, keepdim=True)
    bnvar_inv = (bnvar + eps) ** -0.5
    bnraw = bndiff * bnvar_inv
    return bngain * bnraw + bnbias, (bngain, bnraw, bnvar_inv, n)


def bn_backward(dhpreact, cache):
    """The closed form with n / (n - 1)."""
    bngain, bnraw, bnvar_inv, n = cache
    through = bnraw * (dhpreact * bnraw).sum(0)
    dhprebn = bngain * bnvar_inv / n * (n * dhpreact - dhpreact.sum(0) - n / (n - 1) * through)
    dbngain = (bnraw * dhpreact).sum(0, keepdim=True)
    return dhprebn, dbngain, dhpreact.sum(0, keepdim=True)
