"""`xt.examine`: what the buffers of a checkpoint tell, how files are read, and what is never claimed."""

import argparse
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import xhat.numpy
import xhat.torch as xt
from xhat.errors import ArgumentError

C, DEEP = 16, 4


@pytest.fixture(scope="module")
def trained():
    """The state dict of a network whose layers differ, as after training; its least variance is .02."""
    generator = np.random.default_rng(0)
    state = {}
    for k in range(DEEP):
        scale = 0.1 * (k + 1)
        state[f"layer{k}.conv.weight"] = torch.ones(C, C, 1, 1)
        for name, values in {
            "weight": generator.uniform(0.5, 2, C), "bias": generator.normal(scale, scale, C),
            "running_mean": generator.normal(size=C), "running_var": np.linspace(0.02, 3, C),
        }.items():  # fmt: skip
            state[f"layer{k}.bn.{name}"] = torch.from_numpy(values.astype(np.float32))
        state[f"layer{k}.bn.num_batches_tracked"] = torch.tensor(5000)
    return state


def changed(state, ending, change):
    """A copy with the tensors of this name changed."""
    return {name: change(t.clone()) if name.endswith(ending) else t for name, t in state.items()}


def put(index, value):
    def change(t):
        t[index] = value
        return t

    return change


def reset(state, batches=0):
    """As a model into which only parameters were loaded."""
    state = changed(state, "running_mean", torch.zeros_like)
    state = changed(state, "running_var", torch.ones_like)
    return changed(state, "num_batches_tracked", lambda t: torch.tensor(batches))


def without(state, *endings):
    return {name: t for name, t in state.items() if not name.endswith(endings)}


def kinds(source):
    return [(f.cause, f.severity) for f in xt.examine(source).findings]


NAMES = tuple(f"layer{k}.bn" for k in range(DEEP))
HARMFUL_RESET = [("statistics-never-updated", "harmful")]


def test_a_trained_state_dict_has_no_finding(trained):
    d = xt.examine(trained)
    assert d.findings == [] and d.healthy
    assert [(layer["layer"], layer["channels"]) for layer in d.layers] == [(name, C) for name in NAMES]
    assert str(d) == "state dict: nothing harmful was seen in 4 batch norms."
    assert set(d.modes.values()) == {None}


def test_a_new_model_is_a_note():
    assert kinds(nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)).state_dict()) == [
        ("statistics-never-updated", "note")
    ]


def test_biases_that_were_initialized_at_random_are_not_called_trained(trained):
    """As RepVGG's are: alike in all layers, which trained ones are not."""
    torch.manual_seed(0)
    drawn = changed(reset(trained), "bn.bias", lambda t: 0.1 * torch.randn(C))
    assert kinds(drawn) == [("statistics-never-updated", "note")]
    assert kinds(put_bias(drawn, 0.3)) == HARMFUL_RESET


def put_bias(state, offset):
    return {name: t + offset if name == "layer1.bn.bias" else t for name, t in state.items()}


def test_initial_statistics_beside_trained_parameters_are_harmful(trained):
    (found,) = xt.examine(reset(trained)).findings
    assert (found.cause, found.severity, found.layers) == ("statistics-never-updated", "harmful", NAMES)
    assert found.proof is None and "xt.recalibrate" in found.code


def test_one_reset_layer_is_named_alone(trained):
    one = {name: t for name, t in reset(trained).items() if name.startswith("layer2")}
    (found,) = xt.examine(trained | one).findings
    assert (found.severity, found.layers) == ("harmful", ("layer2.bn",))


def test_initial_statistics_after_many_batches_are_a_momentum_of_zero(trained):
    (found,) = xt.examine(reset(trained, 700)).findings
    assert (found.cause, found.severity, found.evidence["batches"]) == ("momentum", "harmful", 700)


def test_folded_statistics_without_a_counter_are_only_a_risk(trained):
    folded = without(reset(trained), "num_batches_tracked")
    assert kinds(folded) == [("statistics-never-updated", "risk")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer1.bn.running_mean", "layer1.bn.running_var"])
def test_statistics_that_are_not_finite_are_harmful(trained, name, value):
    (found,) = xt.examine(changed(trained, name, put(3, value))).findings
    assert (found.cause, found.severity, found.layers) == ("statistics-not-finite", "harmful", ("layer1.bn",))
    assert found.evidence["channels"] == 1


def test_a_negative_variance_is_harmful_and_rounding_is_not(trained):
    (found,) = xt.examine(changed(trained, "layer1.bn.running_var", put(3, -0.25))).findings
    assert (found.cause, found.severity) == ("statistics-not-finite", "harmful")
    assert found.evidence["least"] == -0.25
    assert kinds(changed(trained, "layer1.bn.running_var", put(3, -1e-9))) == [("dead-channels", "note")]


def test_a_half_checkpoint_with_infinity_had_too_large_statistics(trained):
    wide = changed(trained, "layer1.bn.running_var", put(3, 7e4))
    (found,) = xt.examine(wide).findings
    assert (found.cause, found.severity, found.evidence["largest"]) == ("range-of-float16", "risk", 7e4)
    half = {name: t.half() if t.is_floating_point() else t for name, t in wide.items()}
    (found,) = xt.examine(half).findings
    assert (found.cause, found.severity, found.layers) == ("range-of-float16", "harmful", ("layer1.bn",))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_dtype_alone_is_no_finding(trained, dtype):
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in trained.items()}
    assert kinds(cast) == []


@pytest.mark.parametrize(
    ("batches", "least", "severity", "left"),
    [
        (12, 0.9, "risk", {"0.1": 0.9**12, "0.01": 0.99**12}),
        (100, 0.5, "note", {"0.01": 0.99**100}),
        (12, 0.2, None, None),  # below .9^12: more than 12 batches of momentum .1, or exact
        (400, 0.5, None, None),
    ],
)
def test_what_is_left_of_the_initial_variance_is_bounded_by_the_least_one(
    trained, batches, least, severity, left
):
    """A running variance is at least the weight of the initial 1."""
    state = changed(trained, "running_var", lambda t: t + least)
    found = xt.examine(changed(state, "num_batches_tracked", lambda t: torch.tensor(batches))).findings
    assert [(f.cause, f.severity) for f in found] == (
        [("statistics-not-converged", severity)] if severity else []
    )
    if left:
        assert found[0].evidence["left"] == pytest.approx(left)


def test_dead_channels_and_small_variances_are_counted(trained):
    assert kinds(changed(trained, "layer0.bn.running_var", put(slice(0, 3), 1e-14))) == [
        ("dead-channels", "note")
    ]
    (found,) = xt.examine(changed(trained, "layer0.bn.running_var", put(slice(0, 3), 3e-6))).findings
    assert (found.cause, found.severity) == ("eps-dominates", "note")
    assert found.evidence["share"] == 3 / C


def test_a_layer_that_counted_twice_as_many_batches_is_a_note(trained):
    (found,) = xt.examine(changed(trained, "layer0.bn.num_batches_tracked", lambda t: 2 * t)).findings
    assert (found.cause, found.severity, found.layers) == (
        "layer-used-more-than-once",
        "note",
        ("layer0.bn",),
    )
    assert kinds(changed(trained, "layer0.bn.num_batches_tracked", lambda t: 2 * t + 1)) == []


def test_parameters_alone_are_a_risk_by_their_names_and_nothing_is_judged(trained):
    d = xt.examine(without(trained, "running_mean", "running_var", "num_batches_tracked"))
    (found,) = d.findings
    assert (found.cause, found.severity, found.layers) == ("missing-statistics", "risk", NAMES)
    assert d.layers == []
    assert d.summary == "state dict has no running statistics: no batch norm can be judged."


def test_one_layer_without_statistics_beside_others_is_a_risk(trained):
    (found,) = xt.examine(without(trained, "layer2.bn.running_mean", "layer2.bn.running_var")).findings
    assert (found.layers, found.evidence["others"]) == (("layer2.bn",), 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.TransformerEncoderLayer(8, 2),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)),
        lambda: nn.ModuleDict({"norm1": nn.LayerNorm(8), "subnet": nn.Linear(8, 8)}),
        lambda: nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False)),
    ],
)
def test_other_normalizations_are_not_missing_anything(make):
    d = xt.examine(make().state_dict())
    assert (d.findings, d.layers) == ([], [])


# ------------------------------------------------------------------------------------------ where state dicts are


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_left_out_of_the_paths(trained, prefix):
    (found,) = xt.examine({prefix + name: t for name, t in reset(trained).items()}).findings
    assert found.layers == NAMES


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
        lambda s: {"epoch": 1, "nested": {"deeper": {"model_state_dict": s}}},
    ],
)
def test_a_state_dict_is_found_in_a_checkpoint(trained, wrap):
    (found,) = xt.examine(wrap(reset(trained))).findings
    assert found.layers == NAMES


def test_several_state_dicts_are_told_apart(trained):
    d = xt.examine({"model": trained, "ema": reset(trained)})
    (found,) = d.findings
    assert found.layers == tuple(f"ema/{name}" for name in NAMES)
    assert len(d.layers) == 2 * DEEP


def test_tensors_without_numbers_are_left_out(trained):
    meta = {"a.running_mean": torch.empty(3, device="meta"), "a.running_var": torch.empty(3, device="meta")}
    assert xt.examine(trained | meta).findings == []


# --------------------------------------------------------------------------------------------------------------- files


def saved(path: Path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_files_of_torch_are_read(trained, tmp_path, options):
    args = argparse.Namespace(lr=0.1, out=Path("runs"), best=np.float64(3))
    content = {"model": reset(trained), "args": args, "epoch": 3}
    d = xt.examine(saved(tmp_path / "last.pt", content, **options))
    assert [f.layers for f in d.findings] == [NAMES]
    assert d.model == "last.pt"


def test_safetensors_are_read(trained, tmp_path):
    from safetensors.torch import save_file

    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in reset(trained).items()}
    save_file(half, tmp_path / "model.safetensors")
    assert [f.layers for f in xt.examine(str(tmp_path / "model.safetensors")).findings] == [NAMES]


def test_the_state_of_numpys_layer_is_read(tmp_path):
    layer = xhat.numpy.BatchNorm(5)
    layer.beta[:] = np.arange(5)
    np.savez(tmp_path / "layer.npz", **layer.state_dict())
    (found,) = xt.examine(tmp_path / "layer.npz").findings
    assert (found.cause, found.severity) == ("statistics-never-updated", "harmful")


class Attack:
    """A pickle that runs code."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return open, (self.where, "w")


def broken_files(folder, trained):
    """Each kind of bad file: its path, and what the sentence says."""
    whole = saved(folder / "whole.pt", trained).read_bytes()
    with zipfile.ZipFile(folder / "pictures.pt", "w") as archive:
        archive.writestr("a.txt", "a")
    sparse = folder / "sparse.pt"
    with sparse.open("wb") as file:
        file.truncate(3 << 30)
    (folder / "torn.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("epoch 3, loss 0.1\n")
    (folder / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    (folder / "huge.safetensors").write_bytes(b"\xff" * 64)
    (folder / "objects.npz").write_bytes(b"PK")
    (folder / "empty.pt").touch()
    (folder / "plain.pkl").write_bytes(pickle.dumps({"bn.running_mean": [1.0]}))
    return {
        "nowhere.pt": "there is no file", ".": "is a folder, expected a file", "empty.pt": "is empty",
        "torn.pt": "can't be read", "text.pt": "can't be read", "pictures.pt": "can't be read",
        "sparse.pt": "can't be read", "torn.safetensors": "can't be read", "huge.safetensors": "can't be read",
        "objects.npz": "can't be read",
    }  # fmt: skip


def test_a_bad_file_is_one_sentence(trained, tmp_path):
    for name, words in broken_files(tmp_path, trained).items():
        with pytest.raises(ArgumentError) as raised:
            xt.examine(tmp_path / name)
        sentence = str(raised.value)
        assert words in sentence and "\n" not in sentence and sentence.startswith("examine: "), sentence


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(trained, tmp_path, options):
    mark = tmp_path / "was run"
    path = saved(tmp_path / "attack.pt", trained | {"x": Attack(str(mark))}, **options)
    with pytest.raises(ArgumentError, match="which would run code, and was not loaded"):
        xt.examine(path)
    assert not mark.exists()


def test_a_script_is_refused(tmp_path):
    with pytest.deprecated_call():
        torch.jit.script(nn.ReLU()).save(tmp_path / "script.pt")
    with pytest.raises(ArgumentError, match=r"\(a program\), which would run code"):
        xt.examine(tmp_path / "script.pt")


def test_a_pickled_model_is_refused_by_the_name_of_its_class(tmp_path):
    with pytest.raises(ArgumentError, match=r"torch\.nn\.modules.*Save the state dict alone"):
        xt.examine(saved(tmp_path / "model.pt", nn.Sequential(nn.BatchNorm1d(3))))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds a list, expected a state dict, or a dict with one."),
        ({}, "holds no state dict, expected tensors by names such as 'bn1.running_mean'."),
        ({"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "holds no state dict"),
    ],
)
def test_a_file_without_a_state_dict_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(ArgumentError) as raised:
        xt.examine(saved(tmp_path / "odd.pt", content))
    assert sentence in str(raised.value)


def test_a_stream_is_no_source():
    with pytest.raises(ArgumentError, match="source holds a BytesIO, expected a state dict"):
        xt.examine(io.BytesIO())


def test_the_file_is_not_changed(trained, tmp_path):
    path = saved(tmp_path / "a.pt", changed(trained, "running_var", put(0, float("nan"))))
    before = path.read_bytes()
    xt.examine(path)
    assert path.read_bytes() == before
