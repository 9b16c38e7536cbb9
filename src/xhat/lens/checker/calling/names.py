"""The usual names of every quantity in batch-norm code: parameters, results, attributes of layers, keys of options.

Only names live here; how they are used is in `adapter`, `modules` and `state`.
"""

import re

__all__ = ["COTANGENTS", "GRADIENTS", "PASSES", "WIDTHS", "quantity_of"]

GRADIENTS = ("dx", "dgamma", "dbeta")

# quantity -> its usual names, in lower case and without underscores
_NAMES = {
    "x": "x input inputs inp data xs batch hidden h hprebn features",
    "gamma": "gamma gammas weight weights scale scales scaler w g gain gains bngain mult mults",
    "beta": "beta betas bias biases shift shifts b offset offsets bnbias intercept add adds",
    "eps": "eps epsilon",
    "dy": "dy dout gradoutput gradout gradoutputs outputgrad outgrad grady dldy dlossdy upstream dz delta deltas "
    "dhpreact grad douty accumgrad gout gouts gy dloss doutput doutputs dvalues cotangent",
    "cache": "cache caches ctx context saved state memo stash res residual residuals tape",
    "mean": "mean mu batchmean samplemean savemean savedmean avg average mub",
    "var": "var v variance sigma2 sigmasq sigmasquared batchvar samplevar savevar savedvar bnvar",
    "std": "std stddev sigma sqrtvar",
    "rstd": "rstd ivar invstd istd invvar stdinv rsqrt saveinvstd bnvarinv",
    "xhat": "xhat xnorm xnormed normalized xnormalized bnraw xn",
    "x - mu": "xmu xcentered xcentred centered centred xc bndiff xminusmu",
    "m": "n m count batchsize num numel",
    "y": "y out output",
    "running_mean": "runningmean movingmean runmean runningmu rmean globalmean rollingmean avgmean emamean popmean "
    "populationmean expmean meanrunning movingavgmean movingmeans runningmeans means bnmeanrunning",
    "running_var": "runningvar movingvar runvar movingvariance runningvariance rvar globalvar rollingvar avgvar "
    "rollingvariance emavar popvar populationvar populationvariance expvar varrunning movingavgvar runningvars vars",
    "momentum": "momentum decay bnmomentum mom",
    "training": "training train istraining trainmode trainflg trainflag istrain trainingmode",
    "evaluation": "evaluation isevaluation testing istest inference isinference deterministic useglobalstats "
    "userunningaverage",
    "mode": "mode phase",
    "axis": "axis dim channelaxis channeldim",
    "ndim": "ndim numdims ndims",
    "options": "bnparam bnparams options opts config",
    "dx": "dx gradx gradinput dinput dinputs dhprebn gradinputs gx",
    "dgamma": "dgamma dweight dscale gradgamma gradweight gradscale dgain dw dg dbngain ggamma",
    "dbeta": "dbeta dbias dshift gradbeta gradbias gradshift db dbnbias gbeta",
}
_QUANTITY = {name: quantity for quantity, names in _NAMES.items() for name in names.split()}
_AFFIXES = re.compile(r"^(?:dlossd|dld|d|grad|delta)(\w+)$|^(\w+?)(?:grads?|gradient)$")

# The gradient that comes in, where no parameter has a name of dy.
COTANGENTS = ("g", "ct", "cotangents", "gradients", "grads", "dh", "da", "error", "gradInput")

# Methods of a layer.
PASSES = {
    "forward": (
        "forward",
        "__call__",
        "fprop",
        "forward_pass",
        "forwardpass",
        "forward_propagate",
        "fwd",
        "apply",
    ),
    "backward": (
        "backward",
        "bprop",
        "backward_pass",
        "backwardpass",
        "back_propagate",
        "backprop",
        "bwd",
        "grad",
    ),
}

# Usual names of the number of channels in a constructor.
_WIDTHS = (
    "numfeatures nfeatures features channels c dim size nout numchannels width d numunits nf ni insize inputdim "
    "inputsize nin nneurons units outdim hiddensize planes"
)
WIDTHS = frozenset(_WIDTHS.split())


def quantity_of(name: str) -> str | None:
    """The quantity that a name usually denotes, or None: gradients are also "d" or "grad" before or after a name."""
    plain = re.sub(r"[\W_]", "", name.lower())
    if plain in _QUANTITY:
        return _QUANTITY[plain]
    match = _AFFIXES.match(plain)
    of = _QUANTITY.get(match[1] or match[2]) if match else None
    return f"d{of}" if of in ("x", "gamma", "beta") else None
