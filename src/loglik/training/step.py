"""One training step: the batch, the loss and its gradient, clipping, the optimizers and the moving average.

On a device other than the CPU a step reads no value on the host. Whether it is finite is decided on the device: from
the first step on that is not, nothing changes, and the host sees it some steps later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from loglik.checks import data_checked
from loglik.density import Density
from loglik.evaluation.scores import arguments
from loglik.graphs import Graphed
from loglik.noise import BatchParts
from loglik.training.arrivals import MAX_STEPS_AHEAD, STEPS_BETWEEN_READS, Arrivals
from loglik.training.average import MovingAverage
from loglik.training.batches import Batches
from loglik.training.not_finite import find_not_finite
from loglik.training.recompute import recomputed, repeated_blocks
from loglik.training.seeds import mix_seed, seed_generators
from loglik.training.settings import TrainingSettings
from loglik.training.sharding import gather_into, is_sharded, whole

__all__ = ["Step", "defers"]


def defers(fabric: Fabric, precision: str) -> bool:
    """Return whether steps leave to the device what on the CPU the host decides.

    With `16-mixed` the scaler of the loss decides, which reads on the host; so does the norm of gradients in shards.
    """
    return fabric.device.type != "cpu" and precision != "16-mixed" and not is_sharded(fabric)


class Step:
    """Make training steps.

    Args:
        fabric: launched; its device, precision and ranks.
        density: trained in place.
        module: the density's loss, as Fabric set it up.
        optimizers: as Fabric set them up.
        average: the moving average of the weights, if any.
        batches: the training data, which were checked: the steps do not check them.
        settings: how to train.
        report: called with one line if the step cannot be a CUDA graph.
        compiled: whether torch.compile compiled the loss: parts of a batch then draw their own noise.
        whole: computes the terms of a step that is not finite; another density than the trained one in shards.

    Attributes:
        loss: the newest loss that is known on the host, in nats per example.
        sums: of the losses, the gradient norms and the number of steps since the last call of `means`.
    """

    def __init__(
        self,
        fabric: Fabric,
        density: Density,
        module: Any,
        optimizers: list[Any],
        average: MovingAverage | None,
        batches: Batches,
        settings: TrainingSettings,
        report: Callable[[str], None],
        *,
        compiled: bool = False,
        whole: Density | None = None,
    ) -> None:
        self.fabric, self.density, self.module, self.optimizers = fabric, density, module, optimizers
        self.average, self.batches, self.settings = average, batches, settings
        self.max_norm = settings.gradient_clip * math.prod(density.event_shape)
        self.whole = whole or density
        self.loss = math.nan
        self.ranks, self.accumulate = fabric.world_size, settings.accumulate
        parts = BatchParts(self.ranks, fabric.global_rank, self.accumulate, self._gather)
        self.blocks = repeated_blocks(density) if settings.checkpoint else []
        # compiled code draws its noise where no mode of torch sees it
        self._parts = parts if self.ranks * self.accumulate > 1 and not compiled else None
        self.deferred, device = defers(fabric, settings.precision), fabric.device
        real = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=real, device=device)
        self._failed_on_host: int | None = None
        self._fractions: deque[tuple[int, float]] = deque(maxlen=STEPS_BETWEEN_READS + MAX_STEPS_AHEAD)
        if self.deferred:
            self._number, self._failed = (torch.full((), start, device=device) for start in (0, -1))
            self._rate, self._weight = torch.zeros((), device=device), torch.zeros((), device=device)
            self._arrivals = Arrivals(3, device)
            self._graphed = Graphed(self._deferred, report=report, enabled=settings.cuda_graph and self._can_be_graph())
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self._rate

    def _gather(self, value: Tensor) -> Tensor:
        """Return the tensors of all ranks, stacked."""
        gathered = self.fabric.all_gather(value)
        assert isinstance(gathered, Tensor)
        return gathered

    def _can_be_graph(self) -> bool:
        return self.ranks == self.accumulate == 1 and not self.settings.checkpoint

    def take(self, number: int, fraction: float, rate: float) -> None:
        """Make step `number`, at a fraction of the training, with a learning rate."""
        self._fractions.append((number, fraction))
        event, context = self._begin(number, fraction)
        weight = self.average.next_weight() if self.average else 0.0
        if not self.deferred:
            self._on_host(number, rate, weight, event, context)
            return
        self._number.fill_(number)
        self._rate.fill_(rate)
        self._weight.fill_(weight)
        with torch.no_grad():  # the step itself enables them for the loss
            self._arrivals.send(self._graphed(event, context))
        if self._arrivals.newest is not None:
            self.loss = self._arrivals.newest[0]

    def failed(self, look: bool) -> int | None:
        """Return the number of the first step that was not finite, as far as the host knows; None without one.

        With `look` the host waits for the device, and knows of all steps.
        """
        if not self.deferred:
            return self._failed_on_host
        if look:
            self._arrivals.read()
        newest = self._arrivals.newest
        return int(newest[2]) if newest is not None and newest[2] >= 0 else None

    def means(self) -> tuple[float, float]:
        """Return the mean loss and gradient norm since the last call."""
        loss, norm, count = self.sums.tolist()
        self.sums.zero_()
        return loss / count, norm / count

    def explain(self, number: int) -> str:
        """Return in words what is not finite in a step, from its batch and its noise."""
        fraction = dict(self._fractions)[number]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        event, context = self._begin(number, fraction)
        loss, _ = self._gradient(event, context)
        self._begin(number, fraction)
        if is_sharded(self.fabric):
            gather_into(self.whole, self.density.state_dict())
        words = find_not_finite(self.whole, loss.item(), event, context, trained=self.density)
        every = [self.fabric.broadcast(words, src=rank) for rank in range(self.ranks)]
        return next((words for words in every if "its term" in words), every[0])

    def _begin(self, number: int, fraction: float) -> tuple[Tensor, Tensor | None]:
        """Seed the noise of a step, tell the density how far the training is, and return this rank's examples."""
        self._seed = mix_seed(self.settings.seed, number, 0)
        seed_generators(self._seed, self.fabric.device)
        self.density.train()
        self.density.progress(fraction)
        return arguments(self.density, *self.batches.batch(number))

    def _gradient(self, event: Tensor, context: Tensor | None) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Compute the gradient of the batch's loss, and clip it; return the loss and the gradient's norm."""
        losses = []
        for number, (x, c) in enumerate(_chunks(event, context, self.accumulate)):
            with self._part(number, len(x)):
                loss = self.module(x, c)
                self.fabric.backward(loss / self.accumulate if self.accumulate > 1 else loss)
            losses.append(loss.detach())
        loss = torch.stack(losses).mean() if self.accumulate > 1 else losses[0]
        if self.ranks > 1:
            loss = self.fabric.all_reduce(loss, reduce_op="mean")
        if len(self.optimizers) == 1:
            norm = self.fabric.clip_gradients(
                self.module, self.optimizers[0], max_norm=self.max_norm, error_if_nonfinite=False
            )
            assert norm is not None
        else:  # one norm over the parameters of all optimizers
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_norm)
        return loss, whole(norm)

    @contextmanager
    def _part(self, number: int, size: int) -> Iterator[None]:
        """Compute a part of this rank's examples, with its noise; ranks exchange gradients at the last part."""
        blocks = recomputed(self.blocks) if self.blocks else nullcontext()
        with torch.enable_grad(), data_checked(), blocks, self._noise_of(number, size):
            # in shards, gradients that wait for the last part would be whole
            if self.ranks > 1 and number < self.accumulate - 1 and not is_sharded(self.fabric):
                with self.fabric.no_backward_sync(self.module):
                    yield
            else:
                yield

    def _noise_of(self, number: int, size: int) -> AbstractContextManager[None]:
        """Return the context in which a part of the batch draws its noise."""
        if self._parts is not None:
            if number:
                seed_generators(self._seed, self.fabric.device)
            return self._parts.part(number, size)
        if self.ranks * self.accumulate > 1:
            rank = self.fabric.global_rank * self.accumulate + number
            seed_generators(mix_seed(self._seed, 0, rank), self.fabric.device)
        return nullcontext()

    def _on_host(self, number: int, rate: float, weight: float, event: Tensor, context: Tensor | None) -> None:
        """Make the step unless it is not finite, which the host decides."""
        loss_, norm_ = self._gradient(event, context)
        self.loss, norm = loss_.item(), norm_.item()
        if not (math.isfinite(self.loss) and math.isfinite(norm)):
            self._failed_on_host = number
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if self.average:
            self.average.update(weight)
        self.sums += torch.tensor([self.loss, norm, 1.0], dtype=torch.float64)

    def _deferred(self, event: Tensor, context: Tensor | None) -> Float[Tensor, " 3"]:
        """Make the step unless it or an earlier one is not finite; return loss, norm and the first such step or -1."""
        loss, norm = self._gradient(event, context)
        earlier = self._failed >= 0
        finite = loss.isfinite() & norm.isfinite() & ~earlier
        self._failed.copy_(torch.where(finite | earlier, self._failed, self._number))
        blocked = 1.0 - finite.float()
        for optimizer in self.optimizers:
            optimizer.optimizer.found_inf = blocked  # how torch's gradient scaler blocks a fused step
            optimizer.step()
            optimizer.zero_grad()
        if self.average:
            self.average.update(self._weight * (1.0 - blocked))
        kind = self.sums.dtype
        self.sums += torch.stack([loss.to(kind), norm.to(kind), torch.ones_like(loss, dtype=kind)])
        return torch.stack([loss.to(kind), norm.to(kind), self._failed.to(kind)])


def _chunks(event: Tensor, context: Tensor | None, count: int) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Return a batch in equal parts."""
    if count == 1:
        return [(event, context)]
    return zip(event.chunk(count), [None] * count if context is None else context.chunk(count), strict=True)
