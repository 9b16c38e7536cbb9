"""`average`: pooled moments, parameters in float64, and what state dicts may hold; on disk without their memory."""

import copy
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import in_a_process
from definition import generator
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError


def parts(*sizes: int, channels: int = 3) -> list[Tensor]:
    """Data of several clients, with means that differ more than the values of one client do."""
    g = generator("parts")
    return [
        torch.randn(n, channels, 2, generator=g, dtype=torch.float64) + 5.0 * k for k, n in enumerate(sizes)
    ]


def layers(data: list[Tensor], running_correction: int = 0) -> list[xt.BatchNorm1d]:
    """One layer for each part, whose running statistics are the moments of the part."""
    found = []
    for k, x in enumerate(data):
        layer = xt.BatchNorm1d(3, momentum=1.0, running_correction=running_correction, dtype=torch.float64)
        layer(x)
        nn.init.constant_(layer.weight, k + 1.0)
        found.append(layer)
    return found


def pooled(data: list[Tensor], correction: int) -> tuple[Tensor, Tensor]:
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in data], dim=1)
    return values.mean(1), values.var(1, correction=correction)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("kind", ["numbers", "by layer"])
def test_statistics_are_the_pooled_moments(correction: int, kind: str) -> None:
    data = parts(4, 9, 2)
    counts: Any = [float(2 * len(x)) for x in data]
    counts = counts if kind == "numbers" else [{"": n} for n in counts]
    found = xt.average(layers(data, correction), counts=counts, correction=correction)
    mean, var = pooled(data, correction)
    torch.testing.assert_close(found["running_mean"], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["running_var"], var, rtol=1e-12, atol=1e-12)
    assert found["weight"].tolist() == [2.0] * 3  # parameters weigh the same
    assert found["num_batches_tracked"] == 1


def test_an_average_of_variances_would_be_seen() -> None:
    data = parts(4, 9, 2)
    _, var = pooled(data, 0)
    plain = torch.stack([layer.running_var for layer in layers(data)]).mean(0)
    assert (plain / var < 0.5).all()


def test_without_counts_the_weights_are_those_of_the_statistics() -> None:
    data = parts(4, 9, 2)
    found = xt.average(layers(data), weights=[4, 9, 2])
    mean, var = pooled(data, 0)
    torch.testing.assert_close(found["running_mean"], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["running_var"], var, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["weight"], torch.full((3,), (4 + 18 + 6) / 15, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_parameters_are_rounded_once(dtype: torch.dtype) -> None:
    g, w = generator("parameters"), np.array([0.3, 0.0, 2.0, 0.7])
    states = [{"p": torch.randn(50, generator=g).to(dtype)} for _ in w]
    wide = torch.stack([s["p"].to(torch.promote_types(dtype, torch.float64)) for s in states])
    expected = (wide * torch.tensor(w)[:, None]).sum(0) / w.sum()
    assert torch.equal(xt.average(states, weights=w.tolist())["p"], expected.to(dtype))


def test_what_all_have_stays_to_the_bit() -> None:
    state = {"p": torch.tensor([0.1, -torch.inf, 1e30]), "index": torch.arange(4), "flag": torch.tensor(True)}
    state |= {
        "bn.running_mean": torch.tensor([0.1, 3e7]),
        "bn.running_var": torch.tensor([0.3, 1e-12]),
        "extra": "text",
    }
    found = xt.average([state, copy.deepcopy(state), copy.deepcopy(state)], weights=[0.1, 0.7, 3])
    assert list(found) == list(state)
    for name, value in state.items():
        assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value


def test_counters_are_the_largest_and_nothing_is_shared() -> None:
    a, b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    a.num_batches_tracked.fill_(7)
    b.num_batches_tracked.fill_(3)
    before = copy.deepcopy(a.state_dict())
    found = xt.average([a, b])
    assert found["num_batches_tracked"] == 7
    for value in found.values():
        value.zero_()
    assert all(torch.equal(v, before[k]) for k, v in a.state_dict().items())
    single = xt.average([a])
    single["weight"].zero_()
    assert a.weight.all()


def test_a_layer_that_was_just_made_has_no_statistics() -> None:
    trained, made = *layers(parts(4)), xt.BatchNorm1d(3, dtype=torch.float64)
    found = xt.average([made, trained])
    torch.testing.assert_close(found["running_var"], trained.running_var, rtol=1e-15, atol=0)
    given = xt.BatchNorm1d(3, dtype=torch.float64)
    given.running_mean.fill_(9.0)  # type: ignore[union-attr]  # an old checkpoint, without a counter
    assert (xt.average([given, trained])["running_mean"] - trained.running_mean).abs().min() > 1


def test_partial_models_are_averaged_over_those_that_have_a_name() -> None:
    a, b, c = ({k: v.clone() for k, v in layer.state_dict().items()} for layer in layers(parts(4, 9, 2)))
    for name in ("running_mean", "running_var", "num_batches_tracked", "weight"):
        del b[name]
    c["head"] = torch.tensor([4.0])
    with pytest.raises(
        ArgumentError, match=r"^average: model 0 lacks 'head', expected the names of the others. Pass pa"
    ):
        xt.average([a, b, c])
    found = xt.average([a, b, c], weights=[4, 9, 2], partial=True)
    torch.testing.assert_close(found["running_var"], pooled([parts(4, 9, 2)[k] for k in (0, 2)], 0)[1])
    assert found["weight"].tolist() == pytest.approx([(4 + 6) / 6] * 3)
    assert found["head"] == 4
    assert xt.average([a, c], weights=[1, 0], partial=True)["head"] == 4  # nobody with a weight has it


def test_a_state_dict_keeps_the_versions_of_its_formats() -> None:
    model = nn.Sequential(nn.Linear(3, 4), xt.BatchNorm1d(4))
    found: Any = xt.average([model, copy.deepcopy(model)])
    assert found._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(found)


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no list": (nn.BatchNorm1d(3), {}, "got one BatchNorm1d, expected a list of models"),
    "empty": ([], {}, "the list is empty, expected one model or more"),
    "a number": ([3], {}, "a source is int, expected a module, a state dict, or the path of one"),
    "nested": ([{"model": {"w": torch.ones(1)}}], {}, "no tensor at its first.*'model' is one: pass that"),
    "shapes": ([{"w": torch.ones(2)}, {"w": torch.ones(3)}], {}, r"'w' has shape \(2,\) in model 0 and \(3,\)"),
    "dtypes": ([{"w": torch.ones(2)}, {"w": torch.ones(2).half()}], {}, "dtype torch.float32 in model 0 and"),
    "integers": ([{"w": torch.arange(2)}, {"w": torch.ones(2).long()}], {}, "'w' holds torch.int64 that differ"),
    "too few weights": ([{"w": torch.ones(2)}], {"weights": [1, 2]}, "there are 2 weights for 1 models"),
    "no weight": ([{"w": torch.ones(2)}], {"weights": [0.0]}, r"weights are \[0.0\], expected finite numbers"),
    "no number": ([{"w": torch.ones(2)}], {"weights": ["a"]}, r"weights are \['a'\], expected one number for each"),
    "correction": ([{"w": torch.ones(2)}], {"correction": 2}, "correction is 2, expected 0"),
    "m - 1 is 0": ([nn.BatchNorm1d(3)], {"correction": 1}, "a count of layer '' is 1, expected more than correction=1"),
    "no count": ([nn.Sequential(nn.BatchNorm1d(3))], {"counts": [{}]}, "counts of model 0 has no item '0'"),
    "lazy": ([xt.LazyBatchNorm1d()], {}, "is lazy and has met no input"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_gets_a_sentence(case: str) -> None:
    sources, options, sentence = WRONG[case]
    with pytest.raises(ArgumentError, match=f"^average: .*{sentence}"):
        xt.average(sources, **options)


def test_files_give_what_their_models_give(tmp_path: Path) -> None:
    models = layers(parts(4, 9, 2))
    torch.save(models[0].state_dict(), tmp_path / "0.pt")
    sources: list[Any] = [tmp_path / "0.pt", models[1].state_dict(), models[2]]
    if pytest.importorskip("safetensors"):
        from safetensors.torch import save_file

        save_file(models[1].state_dict(), tmp_path / "1.safetensors")
        sources[1] = str(tmp_path / "1.safetensors")
    expected = xt.average(models, weights=[1, 2, 3])
    found = xt.average(sources, weights=[1, 2, 3])
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    for path in (tmp_path / "broken.pt", tmp_path / "none.safetensors"):
        with pytest.raises(ArgumentError, match=rf"^average: .*{path.name} can't be read as a state dict \("):
            xt.average([path])


PEAK = """
import sys, threading, torch, xhat.torch as xt
def anonymous():
    line = next(s for s in open("/proc/self/status") if s.startswith("RssAnon"))
    return int(line.split()[1]) // 1024
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
before = anonymous()
threading.Thread(target=watch).start()
found = xt.average(sys.argv[1:])
done.set()
print(peak - before, float(found["layer0"][0]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_ten_files_need_the_memory_of_one(tmp_path: Path, kind: str) -> None:
    """32 MB each: the result, some tensors in float64, and what the allocator keeps; not the 320 MB of all."""
    for k in range(10):
        state = OrderedDict((f"layer{i}", torch.full((1 << 18,), float(k))) for i in range(32))
        if kind == "pt":
            torch.save(state, tmp_path / f"{k}.pt")
        else:
            pytest.importorskip("safetensors.torch").save_file(state, tmp_path / f"{k}.safetensors")
    megabytes, value = in_a_process(PEAK, *map(str, sorted(tmp_path.iterdir()))).split()
    assert float(value) == 4.5
    assert int(megabytes) < 3 * 32
