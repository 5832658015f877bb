r"""FSDP2: parameters, gradients, optimizer states and the moving average in shards, one for each rank.

Rank r of R has $\lceil n / R \rceil$ of a tensor's n rows, from row $r \lceil n / R \rceil$ on. Each repeated block is
gathered while it computes, and so is the rest of the network. What is written to disk is whole, so that a run continues
on any number of ranks.

Reference: Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from loglik.density import Density
from loglik.training.blocks import blocks_of

__all__ = [
    "gather",
    "gather_into",
    "is_sharded",
    "load_shards",
    "local",
    "on_shards",
    "gathered_blocks",
    "shard_like",
    "shard_optimizers",
    "shard_tensors",
    "sharded_strategy",
    "trained_copy",
    "whole",
]


def sharded_strategy() -> ModelParallelStrategy:
    """Return Fabric's strategy for FSDP2 over all ranks."""
    return ModelParallelStrategy(parallelize_fn=_shard)


def is_sharded(fabric: Fabric) -> bool:
    """Return whether the ranks hold shards of the parameters."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def gathered_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks that are gathered one at a time: those that are called as modules.

    A block is gathered when it is called. A single layer is none, since its weight may be read without a call.
    """

    def is_called(block: nn.Module) -> bool:
        return type(block).forward is not nn.Module.forward and not isinstance(block, (Density, nn.ModuleList))

    return blocks_of(module, is_called)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard each repeated block, then the rest, over all ranks of a mesh."""
    for block in gathered_blocks(module):
        fully_shard(block, mesh=_all_ranks(mesh))
    fully_shard(module, mesh=_all_ranks(mesh))
    return module


def _all_ranks(mesh: DeviceMesh) -> DeviceMesh:
    """Return the ranks of Fabric's mesh of two dimensions as one dimension."""
    return init_device_mesh(mesh.device_type, (mesh.size(),), mesh_dim_names=("ranks",))


def trained_copy(density: Density) -> Density:
    """Return a copy of a density for `fabric.setup_module` to shard: its kernels are contiguous, as FSDP2 requires."""
    trained = copy.deepcopy(density)
    for parameter in trained.parameters():
        parameter.data = parameter.data.contiguous()
    return trained


def shard_like(tensor: Shaped[Tensor, "..."], like: Tensor) -> Tensor:
    """Return this rank's shard of a tensor that every rank has, sharded as another tensor is; no rank sends."""
    if not isinstance(like, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, [Shard(0)], src_data_rank=None)


def shard_tensors(module: nn.Module, like: nn.Module) -> None:
    """Replace a module's parameters by their shards, as another module of the same kind has them."""
    for (_, parameter), other in zip(list(module.named_parameters()), like.parameters(), strict=True):
        shard = nn.Parameter(shard_like(parameter.detach(), other), requires_grad=parameter.requires_grad)
        for part in module.modules():
            for name, own in part._parameters.items():
                if own is parameter:
                    part.register_parameter(name, shard)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, in the tensor's own memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; where it is in shards, every rank calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return the tensors whole; every rank calls it, and a rank that keeps nothing gets {}.

    Tensors in shards are moved to the CPU one after another, so that no device holds all of them.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            kept[name] = full.detach().cpu() if full is not tensor else full
    return kept


@torch.no_grad()
def gather_into(density: Density, state: Mapping[str, Tensor]) -> None:
    """Copy a state in shards into a density that is whole, on every rank."""
    for name, own in density.state_dict().items():
        own.copy_(whole(state[name]))


def load_shards(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state, which every rank has, into a module in shards.

    Raises RuntimeError, as `load_state_dict`, for other names or shapes.
    """
    own = module.state_dict()
    module.load_state_dict({k: shard_like(v, own[k]) if k in own else v for k, v in state.items()})


def shard_optimizers(optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with the optimizers' states sharded as their parameters are."""
    shards = dict(tensors)
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                shards[key] = shard_like(value, parameters[int(key.split(".")[2])])
    return shards


def on_shards(
    function: Callable[[list[Tensor]], list[Tensor]], kernels: Sequence[Tensor], matrices: Sequence[Tensor]
) -> list[Tensor]:
    """Return `function` of the matrices; where each rank has rows of each, return this rank's rows of the results.

    Each rank computes a share of the matrices: it receives their rows from all ranks, and sends the rows of the results
    back. A rank sends 2 (R - 1) / R of the bytes of its shards.

    Args:
        function: acts on each matrix of a list alone, and keeps shapes.
        kernels: the parameters, in shards or whole.
        matrices: one for each kernel: this rank's rows.
    """
    if not kernels or not isinstance(kernels[0], DTensor):
        return function(list(matrices))
    mesh = kernels[0].device_mesh
    rank, ranks = mesh.get_local_rank(), mesh.size()
    owner = _owners([kernel.numel() for kernel in kernels], ranks)

    def rows(number: int, of: int) -> int:
        size = -(-len(kernels[number]) // ranks)
        return max(0, min(size, len(kernels[number]) - of * size))

    columns = [matrix.shape[1] for matrix in matrices]
    own = [i for i in range(len(kernels)) if owner[i] == rank]
    there = [[i for i in range(len(kernels)) if owner[i] == to] for to in range(ranks)]
    received = _exchange(
        [[matrices[i] for i in of] for of in there],
        [[(rows(i, sender), columns[i]) for i in own] for sender in range(ranks)],
        mesh,
    )
    results = function([torch.cat([sent[n] for sent in received]) for n in range(len(own))])
    parts = [torch.split(result, [rows(i, to) for to in range(ranks)]) for i, result in zip(own, results, strict=True)]
    returned = _exchange(
        [[part[to] for part in parts] for to in range(ranks)],
        [[(len(matrices[i]), columns[i]) for i in of] for of in there],
        mesh,
    )
    by_number = {i: rows for of, sent in zip(there, returned, strict=True) for i, rows in zip(of, sent, strict=True)}
    return [by_number[i] for i in range(len(kernels))]


def _owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return the rank that computes each matrix: from the largest on, the one with the fewest elements so far."""
    owner, load = [0] * len(sizes), [0] * ranks
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = load.index(min(load))
        load[owner[i]] += sizes[i]
    return owner


def _exchange(
    parts: Sequence[Sequence[Float[Tensor, "_ _"]]], shapes: Sequence[Sequence[tuple[int, int]]], mesh: DeviceMesh
) -> list[list[Float[Tensor, "_ _"]]]:
    """Send the tensors of each part to a rank; return those that each rank sent, which have the given shapes."""
    nothing = torch.empty(0, device=mesh.device_type)  # to send, where this rank computes no matrix
    outgoing = torch.cat([nothing, *(tensor.flatten() for part in parts for tensor in part)])
    out, into = [sum(t.numel() for t in part) for part in parts], [sum(r * c for r, c in part) for part in shapes]
    incoming = outgoing.new_empty(sum(into))
    dist.all_to_all_single(incoming, outgoing, into, out, group=mesh.get_group())
    pieces = iter(torch.split(incoming, [r * c for part in shapes for r, c in part]))
    return [[next(pieces).view(shape) for shape in part] for part in shapes]
