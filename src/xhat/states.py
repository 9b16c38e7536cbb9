"""The state of a batch norm converted from one framework to another, and what such a state does not contain.

Names and nesting live in `xhat.stored`; what is computed with a state does not live here.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from xhat.checks import number
from xhat.errors import ArgumentError, OptionError, ShapeError
from xhat.stored import BETA, CONVENTIONS, COUNT, GAMMA, MEAN, VAR, Convention, Values, joined, read, written

__all__ = ["ConvertedState", "convert_state"]


class ConvertedState(NamedTuple):
    """The state of a batch norm by the conventions of another framework.

    `convert_state` returns it.

    Attributes
    ----------
    state : dict
        The arrays by their new names. They are copies.
    options : dict
        eps and momentum by the new layer's names and conventions.
    notes : tuple of str
        What was assumed, what changed and what is not known, as sentences.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> statistics = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
    >>> converted = xhat.convert_state(statistics, "torch", "flax.nnx")
    >>> sorted(converted.state)
    ['mean', 'var']
    >>> converted.options
    {'epsilon': 1e-05, 'momentum': 0.9}
    """

    state: dict[str, Any]
    options: dict[str, Any]
    notes: tuple[str, ...]


def convert_state(
    state: Mapping[Any, Any],
    from_: str,
    to: str,
    *,
    m: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> ConvertedState:
    """Convert the state of batch norms from one framework to another.

    Parameters
    ----------
    state : mapping
        A mapping of names to arrays: of one layer, or of many, nested, or with paths as torch (``"stem.bn.weight"``)
        and Keras (``"stem/bn/gamma"``) write them. What belongs to no batch norm is left out.
    from_, to : {"torch", "keras", "flax.nnx", "flax.linen", "equinox", "numpy"}
        The two frameworks. "numpy" is `xhat.numpy.BatchNorm`. The layers of xhat.torch, xhat.keras, xhat.flax and
        xhat.equinox have the states of the classes that they replace.
    m : float, optional
        The number of values per channel of each training batch, N H W. It is needed only to convert the variance.
    options : mapping, optional
        The eps and momentum of the old layer, by its names. They default to those of its framework.

    Returns
    -------
    ConvertedState
        The new state, the options of the new layer, and notes.

    Raises
    ------
    ArgumentError
        If a framework is unknown, if names are missing or unexpected, if a variance is negative, or unless m is greater
        than 1.
    ShapeError
        If the arrays of a layer have different shapes, or if the new layer can't have theirs.
    DtypeError
        If an array is not of real floating-point numbers.
    OptionError
        If an option is neither eps nor momentum.

    Notes
    -----
    The running variance of torch and of `xhat.numpy.BatchNorm` is ``m2 / (m - 1)``, that of the others ``m2 / m``.
    Evaluation takes either as it stands. Without m it is copied: evaluation gives what it gave. With m it becomes what
    the new layer would have found in the same batches: ``var (m - c) / (m - c')``, with the corrections c and c' of
    the two.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> from xhat.numpy import BatchNorm
    >>> layer = BatchNorm(2)
    >>> converted = xhat.convert_state(layer.state_dict(), "numpy", "keras")
    >>> sorted(converted.state)
    ['beta', 'gamma', 'moving_mean', 'moving_variance']
    >>> converted.options
    {'epsilon': 1e-05, 'momentum': 0.9}
    >>> converted = xhat.convert_state(layer.state_dict(), "numpy", "keras", m=5)
    >>> print(converted.state["moving_variance"])
    [0.8 0.8]
    """
    old, new = _convention("from_", from_), _convention("to", to)
    if m is not None and not 1 < number(m) < np.inf:
        raise ArgumentError(
            f"convert_state: m is {m!r}, expected the values per channel of a batch, more than 1."
        )
    layers, left = read(state, old)
    converted, notes = _options(options or {}, old, new)
    notes = [_on_variance(old, new, m), *notes, *filter(None, (old.remark, new.remark))]
    moved = {}
    for path, values in layers.items():
        _check_fit(f" of {joined(path, old)}" if path else "", values, old, new)
        moved[path] = _moved(values, old, new, m)
        notes += _on_layer(joined(path, new) if path else "The layer", values, old, new)
    if left:
        notes.append(f"Left out, as no batch norms of {from_}: {', '.join(left)}.")
    return ConvertedState(written(moved, new), converted, tuple(dict.fromkeys(notes)))


def _moved(values: Values, old: Convention, new: Convention, m: float | None) -> Values:
    """The values by the conventions of the new layer."""
    gamma, beta, mean, var, count = values
    if var is not None and m is not None:
        var = (var.astype(np.float64) * _factor(old, new, m)).astype(var.dtype)
    if count is None and var is not None:
        count = np.array(0, np.int64)
    return [gamma, beta, mean, var, count]


def _factor(old: Convention, new: Convention, m: float) -> float:
    """What m2 / (m - c) is multiplied by to be m2 / (m - c')."""
    return (m - old.correction) / (m - new.correction)


def _convention(argument: str, framework: Any) -> Convention:
    if not isinstance(framework, str) or framework not in CONVENTIONS:
        raise ArgumentError(
            f"convert_state: {argument} is {framework!r}, expected one of {', '.join(CONVENTIONS)}."
        )
    return CONVENTIONS[framework]


def _check_fit(where: str, values: Values, old: Convention, new: Convention) -> None:
    """Raises where the new layer can't hold what the old one has."""
    if values[VAR] is None and not new.untracked:
        raise ArgumentError(
            f"convert_state: {old.names[MEAN]}, {old.names[VAR]}{where} missing, expected them: {new.layer} always has "
            "running statistics."
        )
    shapes = [value.shape for value in values[:COUNT] if value is not None]
    if shapes and len(shapes[0]) != 1 and not new.shaped:
        raise ShapeError(
            f"convert_state: the arrays{where} have shape {shapes[0]}, expected one dimension: {new.layer} has one "
            "channel axis."
        )


def _options(given: Mapping[str, Any], old: Convention, new: Convention) -> tuple[dict[str, Any], list[str]]:
    """eps and momentum for the new layer, and what is said of them."""
    known = {old.eps[0]: old.eps[1], "momentum": old.momentum}
    if unknown := [name for name in given if name not in known]:
        raise OptionError(
            f"convert_state: options has {unknown[0]!r}, expected those of {old.layer} that matter here: "
            f"{', '.join(known)}."
        )
    eps, momentum = {**known, **given}.values()
    if not 0 <= number(eps) < np.inf:
        raise ArgumentError(f"convert_state: {old.eps[0]} is {eps!r}, expected a number of at least 0.")
    options = {new.eps[0]: eps}
    if momentum is not None:
        if not 0 <= number(momentum) <= 1:
            raise ArgumentError(
                f"convert_state: momentum is {momentum!r}, expected 0 to 1, or None in torch."
            )
        options["momentum"] = momentum if old.keeps == new.keeps else round(1 - momentum, 15)
    elif not new.keeps:
        options["momentum"] = None
    call = f"{new.layer}({', '.join(f'{name}={value}' for name, value in options.items())})"
    had = f"{old.eps[0]}={eps} and momentum={momentum}"
    notes = [f"A state contains neither eps nor momentum: {call} computes what {old.layer} did with {had}."]
    if momentum is None and new.keeps:
        notes.append(
            f"momentum=None, the plain average of all batches, does not exist in {new.layer}, whose default is "
            f"{new.momentum}."
        )
    elif old.keeps != new.keeps:
        weights = ("the new batch", "the old value")
        notes.append(
            f"momentum is the weight of {weights[old.keeps]} in {old.layer}, of {weights[new.keeps]} in {new.layer}: "
            "1 - momentum."
        )
    return options, notes


def _on_variance(old: Convention, new: Convention, m: float | None) -> str:
    """The question of m - 1, answered."""
    divisors = {0: "m", 1: "(m - 1)"}
    kept, found = (f"m2 / {divisors[c.correction]}" for c in (old, new))
    batches = "with m the values per channel of a training batch"
    if kept == found:
        return f"The running variance of either layer is {kept}, {batches}: it is copied."
    between = (
        f"{old.names[VAR]} of {old.layer} is {kept}, {new.names[VAR]} of {new.layer} is {found}, {batches}"
    )
    if m is None:
        return (
            f"{between}, which no state contains. The variance is copied, so evaluation gives what it gave; further "
            "training moves it to the other convention. Pass m to convert it now."
        )
    return (
        f"{between}. With m = {m:g} the variance was multiplied by {_factor(old, new, m):.9g}: exactly right if every "
        "batch had this m and the initial variance of 1 has faded. Evaluation changes with it."
    )


def _on_layer(layer: str, values: Values, old: Convention, new: Convention) -> Iterator[str]:
    """What is said of one layer."""
    for index in (GAMMA, BETA):
        if values[index] is None:
            yield f"{layer} has no {new.names[index]}, so the new one is made without it."
    counts = len(new.names) > COUNT
    if values[COUNT] is not None and not counts:
        yield f"{old.names[COUNT]} is left out: {new.layer} does not count batches."
    if values[COUNT] is None and values[VAR] is not None and counts:
        yield (
            f"{new.names[COUNT]} is 0, since the number of batches is not known. With momentum=None the first batch "
            "would replace the statistics."
        )
