"""`xt.examine`: how state dicts are found in mappings and files, and which files are refused."""

import argparse
import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from states import DEEP, NAMES, changed, put, reset, trained
from torch import nn

import xhat.numpy
import xhat.torch as xt
from xhat.errors import ArgumentError


@pytest.fixture(name="trained", scope="module")
def made():
    """See `states.trained`."""
    return trained()


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


def test_without_safetensors_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    with pytest.raises(ArgumentError) as raised:
        xt.examine(tmp_path / "model.safetensors")
    assert str(raised.value) == "examine: safetensors is missing, install it with pip install 'xhat[doctor]'."


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
