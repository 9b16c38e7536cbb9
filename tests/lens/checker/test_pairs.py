"""Which functions are a batch norm, and which forward belongs to which backward: by names alone."""

import pytest

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.files.pairs import Found, Function, Pair, find_pairs, named_pair


def functions(text: str) -> list[Function]:
    """Functions from "name(parameters)", classes from "name: methods"."""
    found = []
    for line in text.split(";"):
        name, _, methods = line.strip().partition(":")
        name, _, parameters = name.partition("(")
        given = methods.split() if methods else parameters.rstrip(")").replace(",", " ").split()
        found.append(Function(name, tuple(given), is_class=bool(methods)))
    return found


def pairs(text: str) -> set[tuple[str | None, str | None]]:
    return {(pair.forward, pair.backward) for pair in find_pairs(functions(text)).pairs}


COURSE = (
    "affine_forward; affine_backward; batchnorm_forward; batchnorm_backward; batchnorm_backward_alt; "
    "layernorm_forward; layernorm_backward; spatial_batchnorm_forward; spatial_batchnorm_backward; "
    "spatial_groupnorm_forward; affine_bn_relu_forward; test_batchnorm; batchnorm_forward_eval"
)


def test_every_pair_of_a_file_is_found_and_the_rest_is_named_with_its_reason() -> None:
    found = find_pairs(functions(COURSE))
    assert set(found.pairs) == {
        Pair("batchnorm_forward", "batchnorm_backward"),
        Pair("batchnorm_forward", "batchnorm_backward_alt"),
        Pair("spatial_batchnorm_forward", "spatial_batchnorm_backward"),
    }
    assert dict(found.unjudged) == {
        "layernorm_forward": "is not batch norm",
        "layernorm_backward": "is not batch norm",
        "spatial_groupnorm_forward": "is not batch norm",
        "affine_bn_relu_forward": "is composed of several layers",
        "test_batchnorm": "is no forward or backward by its name",
        "batchnorm_forward_eval": "is evaluation by its name",
    }
    assert found.others == ["affine_forward", "affine_backward"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("forward; backward", {("forward", "backward")}),
        ("fprop; bprop", {("fprop", "bprop")}),
        ("bn_fwd; bn_bwd", {("bn_fwd", "bn_bwd")}),
        ("bnForward; bnBackward", {("bnForward", "bnBackward")}),
        ("batch_norm; batch_norm_grad", {("batch_norm", "batch_norm_grad")}),
        ("batch_norm; d_batch_norm", {("batch_norm", "d_batch_norm")}),
        ("batchnorm; bprop", {("batchnorm", "bprop")}),  # a backward that is only called that
        ("batch_norm; _fwd; _bwd", {("batch_norm", None), ("_fwd", "_bwd")}),  # its own derivative in JAX
        (
            "batch_norm; batch_norm_fwd; batch_norm_bwd",
            {("batch_norm", None), ("batch_norm_fwd", "batch_norm_bwd")},
        ),
        ("batch_norm; _batch_norm", {("batch_norm", None)}),  # a part of the public function
        ("batchnorm_backward(dy, x)", {(None, "batchnorm_backward")}),
        ("normalize(x, gamma, beta); relu(x)", {("normalize", None)}),
        ("mine(x, gamma, beta); other(x)", {("mine", None)}),
        (
            "BatchNorm1d: __init__ forward; BatchNorm2d: __call__",
            {("BatchNorm1d", None), ("BatchNorm2d", None)},
        ),
        ("BatchNorm: forward; BatchNormTable: rows", {("BatchNorm", None)}),
        ("BatchNormAutograd: forward; BatchNormGrad: forward", {("BatchNormAutograd", None)}),
        ("Layer: forward backward", {("Layer", None)}),
        ("area(r); f(x)", set()),
        # Another layout is another computation: the nearest name alone is not enough.
        (
            "batchnorm_forward; spatial_batchnorm_backward",
            {("batchnorm_forward", None), (None, "spatial_batchnorm_backward")},
        ),
    ],
)
def test_pairs_in_many_styles(text: str, expected: set[tuple[str | None, str | None]]) -> None:
    assert pairs(text) == expected


def test_a_base_class_of_a_judged_class_is_not_judged() -> None:
    base = Function("BatchNormBase", ("forward",), is_class=True)
    one, two = (
        Function(f"BatchNorm{k}d", ("forward",), True, ("BatchNormBase", "BatchNorm1d")) for k in (1, 2)
    )
    assert find_pairs([base, one, two]) == Found(
        [Pair("BatchNorm1d"), Pair("BatchNorm2d")], [], ["BatchNormBase"]
    )


def test_a_folder_is_searched_more_strictly_than_a_file_that_was_named() -> None:
    for text in (
        "normalize(x); relu(x)",
        "my_forward(x)",
        "Layer: forward",
        "softmax_forward(x); softmax_backward(dy)",
    ):
        assert find_pairs(functions(text), any_name=False).pairs == [], text
    assert find_pairs(functions("forward; backward"), any_name=False).pairs == [Pair("forward", "backward")]


def test_names_that_were_asked_for_choose_the_pair() -> None:
    known = functions(COURSE)
    assert named_pair(known, "batchnorm_forward", None) == Pair("batchnorm_forward", "batchnorm_backward")
    assert named_pair(known, None, "batchnorm_backward_alt") == Pair(
        "batchnorm_forward", "batchnorm_backward_alt"
    )
    assert named_pair(known, "affine_forward", "affine_backward") == Pair("affine_forward", "affine_backward")
    assert named_pair(known, "batchnorm_forward", "none") == Pair("batchnorm_forward")
    with pytest.raises(Unjudged, match=r"it has no function 'absent' \(it has affine_forward, "):
        named_pair(known, "absent", None)
