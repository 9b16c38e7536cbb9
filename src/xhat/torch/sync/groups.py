"""Process groups by name, and their private copies for the exchanges. What is exchanged must never live here."""

import weakref
from typing import Any

import torch
import torch.distributed as dist

from xhat.torch.errors import ExchangeError, first_line
from xhat.torch.internals import registered, timeout_of

__all__ = [
    "check_registered",
    "failure",
    "group_name",
    "group_of",
    "group_or_none",
    "private_copy",
    "rank",
    "refuse_to_go_on_alone",
    "takes",
    "world_size",
]

_groups: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()


def group_name(group: Any) -> str:
    """The name of a process group, by which a layer's state and a graph refer to it: '' for the default group."""
    if group is None or group is dist.group.WORLD:
        return ""
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        return "another's"
    name = str(group.group_name)
    _groups[name] = group
    return name


def group_of(name: str) -> Any:
    """The process group of this name. Raises ExchangeError if this process is not in it."""
    group = group_or_none(name)
    if group is None:
        raise ExchangeError(
            f"batch_norm: this process is not in the layer's process group{f' {name!r}' if name else ''}. "
            "Give each rank the group that it is in, made in this process."
        )
    return group


def group_or_none(name: str) -> Any:
    """The process group of this name, None if there is none."""
    return dist.group.WORLD if name == "" else _groups.get(name)


def check_registered(group: Any, name: str) -> None:
    """Raises ExchangeError if this process group was destroyed: torch would still use it."""
    if not registered(group):
        raise ExchangeError(
            f"batch_norm: the layer's process group{f' {name!r}' if name else ''} was destroyed. Set its process_group "
            "to another group. No state was changed."
        )


def world_size(group: str) -> int:
    """The number of ranks in the group of this name; 1 if torch.distributed is not initialized."""
    if group == "" and not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group_of(group))


def takes(group: Any, device: torch.device) -> bool:
    """Whether the group's backend for this device exchanges its tensors there: NCCL does; gloo copies to the host."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return device.type != "cpu" and backends.get(device.type, "gloo") != "gloo"


def refuse_to_go_on_alone() -> None:
    """Raises ExchangeError unless there is a default group: for a layer that has shared its batches with others."""
    if not dist.is_initialized():
        raise ExchangeError(
            "batch_norm: the layer has shared its batches with other ranks, and the default process group was "
            "destroyed. Initialize it again, or train a copy of the model on this process alone (copy.deepcopy). No "
            "state was changed."
        )


def rank(group: str) -> int:
    """The rank of this process in the group of this name."""
    return dist.get_rank(group_of(group))


def private_copy(group: Any) -> Any:
    """Another group of the same processes, so that no other collective comes between the exchanges of two ranks.

    Others use a group whenever their own work is ready. DistributedDataParallel, for one, sends a bucket of gradients
    when it is full, which is at another time on ranks that leave out other parameters.
    """
    try:
        return dist.new_group(
            dist.get_process_group_ranks(group),
            timeout=timeout_of(group),
            backend=dist.get_backend_config(group),
            use_local_synchronization=True,  # the processes of other groups do not take part
        )
    except RuntimeError as error:
        what = "the first exchange, which makes a process group,"
        raise failure(what, dist.get_rank(group), dist.get_world_size(group), error) from error


def failure(what: str, rank: int, ranks: int, error: RuntimeError) -> ExchangeError:
    """The error where a collective raises RuntimeError."""
    return ExchangeError(
        f"batch_norm: {what} failed on rank {rank} of {ranks}: a rank has ended or did not come in time. "
        f"No state was changed. ({first_line(error)})"
    )
