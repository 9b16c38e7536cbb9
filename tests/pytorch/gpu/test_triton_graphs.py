"""What is recorded for a CUDA tensor, by fake tensors: there need be no GPU."""

from collections.abc import Iterator
from threading import Lock

import numpy as np
import pytest
import torch
from requirements_of_triton import requires_triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import xhat.torch as xt
from xhat.plan import Options
from xhat.torch import engines
from xhat.torch.errors import ExchangeError
from xhat.torch.operators import Where
from xhat.torch.sync import frames, groups, shared_batch
from xhat.torch.sync.header import STOPPED, packed

pytestmark = requires_triton


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def operators(training: bool) -> set[str]:
    layer = xt.BatchNorm2d(8, activation="relu", device="cuda").train(training).requires_grad_(False)
    x = torch.empty(4, 8, 6, 4, device="cuda")
    graph = make_fx(lambda x: layer(x))(x)
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def test_our_operator_is_recorded_where_triton_is_switched_on(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", True)
    assert "xhat.batch_norm.default" in operators(training=True)


def test_torchs_operations_are_recorded_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", False)
    assert not any(name.startswith("xhat.batch_norm") for name in operators(training=True))


def test_an_evaluation_is_recorded_as_operations_that_a_compiler_fuses(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", True)
    assert not any(name.startswith("xhat.") for name in operators(training=False))


@pytest.mark.parametrize("switched_on", [True, False])
@pytest.mark.parametrize(
    "name",
    ["weight", "bias", "residual", "mask", "running_mean", "running_var", "running_mean in evaluation"],
)
def test_a_tensor_on_another_device_is_refused_in_one_sentence(
    name: str, switched_on: bool, monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", switched_on)
    x = torch.empty(4, 8, 6, 4, device="cuda")
    name, *evaluation = name.split(" in ")
    shapes = {"residual": (4, 8, 6, 4), "mask": (4, 1, 6, 4)}
    given = {
        other: torch.empty(8, device="cuda") for other in ("running_mean", "running_var", "weight", "bias")
    }
    xt.batch_norm(x, **given, training=not evaluation)
    given[name] = torch.empty(shapes.get(name, (8,)))
    wanted = f"batch_norm: {name} is on cpu and input on cuda:0, expected one device"
    with torch.no_grad(), pytest.raises(RuntimeError, match=wanted):
        xt.batch_norm(x, **given, training=not evaluation)


def test_a_compiled_layer_records_our_operators(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", True)
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    layer = xt.BatchNorm2d(8, device="cuda", activation="relu").requires_grad_(False)
    with torch.no_grad():
        torch.compile(layer, backend=backend, fullgraph=True)(torch.empty(4, 8, 6, 4, device="cuda"))
    assert [name for name in found if name.startswith("xhat.")] == ["xhat.batch_norm", "xhat.track"]


class Group:
    """In place of a process group and its backend: what is exchanged."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []

    def all_gather(self, received: torch.Tensor, sent: torch.Tensor, group: object) -> None:
        assert received.device == sent.device and len(received) == 2 * len(sent)
        self.sent.append((sent.device.type, len(sent)))


class AnsweringGroup(Group):
    """The host gets the frame of a second rank too, which is this one."""

    def __init__(self, answer: np.ndarray | None = None) -> None:
        super().__init__()
        self.answer = answer

    def all_gather(self, received: torch.Tensor, sent: torch.Tensor, group: object) -> None:
        super().all_gather(received, sent, group)
        if sent.device.type == "cpu":
            received.copy_(torch.cat((sent, sent if self.answer is None else torch.from_numpy(self.answer))))


def session_of(group: Group, device: str, monkeypatch: pytest.MonkeyPatch) -> frames.Session:
    """A session of two ranks that exchange by this group, and whose last exchange was on this device."""
    session = frames.Session.__new__(frames.Session)
    vars(session).update(
        rank=0, ranks=2, device=torch.device(device), lock=Lock(), progress=frames.Progress()
    )
    vars(session).update(interrupt=None, previous=None, capacity_after={}, headers={}, _group=lambda: group)
    monkeypatch.setattr(frames, "_all_gather", group.all_gather)
    return session


def test_ranks_exchange_tensors_of_the_gpu_and_the_host_reads_none(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    """To read a fake tensor is an error: it has no elements."""
    group = Group()
    session = session_of(group, "cuda", monkeypatch)
    monkeypatch.setattr(frames, "_session", lambda name: session)
    monkeypatch.setattr(frames, "takes", lambda device, name: device.type == "cuda")
    x, o, where = torch.empty(4, 8, 6, 4, device="cuda"), Options(1e-5, 0, None, 0.0), Where("", "a layer")
    statistics, count = shared_batch.Exchanged().statistics(x, None, o, where)
    total = shared_batch.Exchanged().total(statistics, x, statistics, o, where)
    assert {statistics.device.type, count.device.type, total.device.type} == {"cuda"}
    header = frames.WORDS  # alone at first; the frame of the right size follows
    assert group.sent == [("cuda", header), ("cuda", header + 17), ("cuda", header), ("cuda", header + 16)]


def test_the_host_reads_the_header_before_the_first_exchange_on_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group, header = AnsweringGroup(), frames.FrameHeader("statistics", "a layer", 8)
    session = session_of(group, "cpu", monkeypatch)
    for _ in range(2):
        session.gather_on_device(torch.empty(17, dtype=torch.float64, device="meta"), header)
    alone, full = frames.WORDS, frames.WORDS + 17
    assert group.sent == [("cpu", alone), *[("meta", alone), ("meta", full)] * 2]
    assert session.device.type == "meta"  # where a rank would announce that it has failed


def test_a_rank_that_fails_before_the_first_exchange_on_a_device_ends_it_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    header = frames.FrameHeader("statistics", "a layer", 8)
    stopped = packed(header._replace(kind=STOPPED), 0, -1).view(np.float64)
    group = AnsweringGroup(stopped)  # what `abort` sends of a session whose device is the host's
    session = session_of(group, "cpu", monkeypatch)
    with pytest.raises(
        ExchangeError, match="rank 1 stopped before the exchange of statistics of layer 'a layer'"
    ):
        session.gather_on_device(torch.empty(17, dtype=torch.float64, device="meta"), header)
    assert group.sent == [("cpu", frames.WORDS)] and session.device.type == "cpu"


@pytest.mark.parametrize(
    ("backends", "device", "there"),
    [("cpu:gloo,cuda:nccl", "cuda", True), ("cuda:nccl", "cuda", True), ("cpu:gloo,cuda:gloo", "cuda", False),
     ("cpu:gloo,cuda:nccl", "cpu", False)],
)  # fmt: skip
def test_a_backend_that_copies_to_the_host_gets_tensors_of_the_host(
    backends: str, device: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups.dist, "get_backend_config", lambda group: backends)
    assert groups.takes(None, torch.device(device)) is there
