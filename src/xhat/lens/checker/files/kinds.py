"""What the name of a function or a class says: batch norm or another layer, forward or backward.

Names alone are looked at; nothing is imported or run.
"""

import re
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Reading", "read_name", "words_of"]

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_BATCH_NORM = re.compile(
    r"batch_?norm|normali[sz]e_?batch|(^|_)(sync|d)?_?bn(\d|_|$)|(^|_)d?_?bn(?=forward|backward|fwd|bwd)"
)
_OTHER_NORM = re.compile(
    r"(layer|group|instance|rms|weight|spectral|filter|switchable|response|l[12])_?norm|(^|_)(ln|gn|lrn)(_|$)"
    r"|re_?norm|decorrelated|whiten"
)
_FORWARD = re.compile(r"for_?ward|(^|_)(fwd|fprop|fp)(?=_|$)|fwd$|fprop$")
_BACKWARD = re.compile(
    r"back_?ward|back_?prop|(^|_)(bwd|bprop|bp|back|grads?|gradients?|vjp)(?=_|$)|bwd$|bprop$"
    r"|(^|_)d(?=_?(batch|bn|norm))"
)


def words_of(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


# Words of a name that tell variants of one computation apart, or nothing.
_VARIANTS = words_of("""
    alt alternative simple simplified naive slow quick vectorized optimized opt efficient closed form final my custom
    our the a of own manual numpy np torch jax pytorch pass prop step fn func function layer op impl py 0 1 2 3 4 5 v
    alone train training""")
# Words of other layers: a function that contains them composes batch norm with something.
_LAYERS = words_of("""
    affine conv convolution linear fc dense pool maxpool dropout softmax lstm rnn gru embedding attention svm mlp net
    network resnet unet model block trainer transformer encoder decoder generator discriminator optimizer dataset
    sandwich fuse fused fold folding loss params param config
    inception googlenet densenet activation selector mixin factory""")
# Words with which names of functions begin that do something else with a batch norm than to compute it.
_VERBS = words_of("""
    test tests check plot init initialize initialise make load save convert replace freeze get set update print run main
    compare is has count reset create build demo example show find register export benchmark bench time measure use add
    remove verify validate assert visualize debug num eval evaluate recalibrate reestimate calculate""")
_NORMALIZE = words_of("normalize normalise normalization normalisation norm standardize")
_EVALUATION = words_of("eval evaluation inference test infer predict fixed frozen")


class Reading(NamedTuple):
    """What a name says.

    kind: "batch norm", "evaluation" (of one), "composed" (with other layers), "action" (on one), "other norm",
    "generic" (nothing but forward, backward or normalize) or "other";
    role: "forward", "backward" or None; words: the rest of the name, without variants; variants: those.
    """

    kind: str
    role: str | None
    words: frozenset[str]
    variants: frozenset[str]


@lru_cache(maxsize=4096)
def read_name(name: str) -> Reading:
    """Read a name in snake case or camel case."""
    name = re.sub(r"[Aa]uto_?[Gg]rad", "Function", name)
    joined = re.sub(r"(\d)_d(?=_|$)", r"_\1d", "_".join(_WORD.findall(name)).lower())  # BatchNorm2d
    role, rest = None, joined
    for candidate, pattern in (("backward", _BACKWARD), ("forward", _FORWARD)):
        if pattern.search(rest):
            role, rest = candidate, pattern.sub("_", rest, count=1)
            break
    words = frozenset(
        word for word in re.sub(r"batch_?norm(ali[sz](ation|e))?", "batchnorm", rest).split("_") if word
    )
    variants = words & _VARIANTS
    return Reading(_kind(joined, role, words - variants), role, words - variants, variants)


def _kind(joined: str, role: str | None, words: frozenset[str]) -> str:
    first = joined.partition("_")[0]
    if _OTHER_NORM.search(joined):
        return "other norm"
    if _BATCH_NORM.search(joined):
        if first in _VERBS:
            return "action"
        if words & _LAYERS:
            return "composed"
        return "evaluation" if words & _EVALUATION else "batch norm"
    if first in _VERBS or words & _LAYERS:
        return "composed" if "norm" in joined and words & _LAYERS else "other"
    if words <= _NORMALIZE and (role or words):
        return "generic"
    return "other"
