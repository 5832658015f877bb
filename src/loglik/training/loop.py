"""fit: the training loop, over Lightning Fabric.

The order of the data is a function of (seed, epoch), or of (seed, step) where they are windows of a text, and the noise
of (seed, step), so a run that was killed and is resumed ends with the weights that it would have had, bit for bit, on
the same machine (with `max_steps` or `max_epochs`; a limit of time stops where the clock says).
"""

from __future__ import annotations

import atexit
import copy
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from loglik import recipes, runs
from loglik.cpu.memory import keep_freed_memory
from loglik.cpu.private import copy_each_, keep_saved_tensors, lerp_each_
from loglik.data import as_data
from loglik.data.dataset import Data, Split
from loglik.data.text import TextSettings
from loglik.data.windows import Windows
from loglik.density import Density
from loglik.evaluation.scores import arguments, default_samples, log_probs
from loglik.training import checkpoint
from loglik.training.optimizers import optimizers_of
from loglik.training.precision import multiplies_bfloat16
from loglik.training.progress import Progress, progress_bar
from loglik.training.request import check_fits, check_same, check_trainable, describe, split_options
from loglik.training.settings import TrainingSettings

__all__ = ["NotFinite", "fit"]

VALIDATIONS = 25  # of a run whose only limit is time
TOKENS = 2**15  # that a validation on text looks at
DRAWS = 512  # of a bound whose draws only average, that are enough in a validation


class NotFinite(FloatingPointError):
    """The loss or a gradient is not finite; training stopped and the last good weights are kept."""


def fit(
    density: Density | str,
    data: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    label: str | None = None,
    settings: TrainingSettings | None = None,
    progress: bool | None = None,
    **options: Any,
) -> runs.Run:
    r"""Maximise the likelihood of the training split: minimise `density.loss`, in nats per example.

    Args:
        density: a density, trained in place, or a family's name for its recipe's default.
        data: a name, a path, an array, a pair (x, y), or `Data`.
        out: the run's folder; None keeps the run in memory.
        resume: go on with the run in `out` from its newest checkpoint.
        label: the label's column, where data is a table's path.
        settings: how to train; the recipe's own if None.
        progress: show a progress bar; on a terminal only if None.
        **options: fields of `TrainingSettings` (`max_time="30s"`, `batch_size=64`, ...), of `TextSettings` for text
            (`tokenizer="characters"`, ...) and, for a family's name, options of its recipe (`size="medium"`, ...).

    Returns the run, with the weights of the best validation.

    Raises ValueError for data or options that do not fit, FileExistsError where `out` is in use, and `NotFinite`
    where training diverges.
    """
    text, options = TextSettings.split_options(options)
    chosen, options = split_options(density, options)
    base = settings or TrainingSettings()
    beside = None if out is None else Path(out)
    data = as_data(data, label=label, seed=replace(base, **chosen).seed, text=text, beside=beside)
    if settings is None and isinstance(density, str):
        base = TrainingSettings(**recipes.recipe(density).training(data.spec))
    settings = replace(base, **chosen).with_limit()
    path = beside
    if resume and (path is None or not (path / "config.yaml").is_file()):
        raise ValueError(f"nothing to resume: {path or 'without out, there'} is no run")

    keep_freed_memory()
    fabric = _fabric(settings)
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_end_processes)
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        name = density if isinstance(density, str) else None
        built = recipes.build(density, data.spec, **options) if isinstance(density, str) else density
        check_fits(built, data)
        check_trainable(built, name)
        config = describe(name, options, data, settings)
        if path is not None and fabric.is_global_zero:
            if resume:
                check_same(runs.read_config(path), config, path)
            else:
                runs.new_folder(path)
                runs.write_config(path, config)
        trainer = _Trainer(fabric, built, data, settings, path)
        start = time.perf_counter()
        if trainer.trainable:
            careful = _careful_compiler() if settings.compile else nullcontext()
            with careful, progress_bar(name or type(built).__name__, progress and fabric.is_global_zero) as bar:
                trainer.run(bar, resume)
        else:
            trainer.count()
        config["steps"] = trainer.step
        config["train_seconds"] = round(trainer.elapsed if trainer.trainable else time.perf_counter() - start, 3)
    run = runs.Run(built.eval(), data.spec, config, trainer.history, path)
    if path is not None and fabric.is_global_zero:
        runs.write_weights(path, built)
        runs.write_metrics(path, trainer.history)
        runs.write_config(path, config)
    return run


def _fabric(settings: TrainingSettings) -> Fabric:
    precision = settings.precision
    if precision == "auto":
        on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
        fast = multiplies_bfloat16(torch.device("cuda" if on_gpu else "cpu"))
        precision = "bf16-mixed" if fast else "32-true"
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # it announces the precision
    try:
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            num_nodes=settings.num_nodes,
            precision=precision,  # type: ignore[arg-type]
        )
    except (RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        asked = f"accelerator={settings.accelerator}, devices={settings.devices}, strategy={settings.strategy}"
        raise ValueError(f"cannot train with {asked}, precision={settings.precision}: {error}") from error


def _end_processes() -> None:
    """End the group while Python still runs: a thread of it that lets go of a tensor later aborts the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _careful_compiler() -> Iterator[None]:
    """Keep the compiler from writing over saved tensors: of some it needs the whole after writing over a part.

    And from warnings about its own code.
    """
    with warnings.catch_warnings(), keep_saved_tensors():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
        yield


class _Loss(nn.Module):
    """The loss as a forward pass, which is what data-parallel wrappers and the compiler know."""

    def __init__(self, density: Density) -> None:
        super().__init__()
        self.density = density

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.density.loss(x, context)


class _Trainer:
    """The state of one training and its loop."""

    def __init__(
        self, fabric: Fabric, density: Density, data: Data, settings: TrainingSettings, path: Path | None
    ) -> None:
        self.fabric, self.density, self.settings, self.path = fabric, density, settings, path
        self.data = data
        self.train = _on_device(data.train, fabric.device)
        text = isinstance(data.train.x, Windows)
        most = max(64, TOKENS // data.spec.dims) if text else max(128, min(1024, 2**19 // data.spec.dims))
        self.validation = _on_device(_evenly(data.validation, most), fabric.device)
        self.trainable = any(p.requires_grad for p in density.parameters())
        self.batch_size = min(settings.batch_size, len(data.train))
        if self.batch_size % fabric.world_size:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of the {fabric.world_size} devices")
        apart = data.spec.dims if text else 1  # windows overlap: an epoch is as many as stand side by side
        self.steps_per_epoch = max(1, len(data.train) // (self.batch_size * apart))
        self.per = data.spec.dims if text else 1  # the bar shows nats per token
        self.last_step = min([settings.max_steps or math.inf, (settings.max_epochs or math.inf) * self.steps_per_epoch])
        self.every = settings.validate_every or max(25, min(500, self.steps_per_epoch))
        self.by_time = settings.max_time is not None and settings.validate_every is None
        self.step, self.elapsed, self.next_mark = 0, 0.0, 0.0
        self.best_nats, self.best_train, self.best_step, self.worse = -math.inf, -math.inf, -1, 0
        self.best: dict[str, Tensor] = {}
        self.best_scores = torch.empty(0)
        self.history: list[dict[str, float]] = []

    def count(self) -> None:
        """Fit a density that has nothing to train."""
        self.density.to(self.fabric.device)
        self._initialise()

    def run(self, bar: Progress, resume: bool) -> None:
        settings, fabric = self.settings, self.fabric
        state = checkpoint.load_newest(self.path / "checkpoints") if resume and self.path else None
        self.density.to(fabric.device)
        if state is None:
            self._initialise()
        loss = _Loss(self.density)
        whole: nn.Module = torch.compile(loss) if settings.compile else loss  # type: ignore[assignment]
        module, *optimizers = fabric.setup(whole, *optimizers_of(self.density, settings))
        average = _Average(self.density, settings.ema_decay) if settings.ema_decay else None
        judged: Density = average.module if average else self.density  # type: ignore[assignment]
        if state is not None:
            self._restore(state, optimizers, average)
        began = time.perf_counter() - self.elapsed
        clip = settings.gradient_clip * math.prod(self.density.event_shape)
        sums = torch.zeros(3, dtype=torch.float64)  # loss, gradient norm, steps since the last validation

        while (part := self._part()) < 1 and not self._out_of_patience():
            rows = self._rows()
            rate = settings.learning_rate * _schedule(part, self.step, settings.warmup)
            for group in chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
                group["lr"] = rate
            _seed(_mix(settings.seed, self.step, fabric.global_rank), fabric.device)
            self.density.train()
            self.density.progress(part)
            x, y = self._batch(rows)
            event, context = arguments(self.density, x, y)
            value = module(event, context)
            fabric.backward(value)
            if len(optimizers) == 1:
                norm = fabric.clip_gradients(module, optimizers[0], max_norm=clip, error_if_nonfinite=False)
                assert norm is not None
            else:  # one norm over all of them
                norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
            value_, norm_ = value.item(), norm.item()
            if not (math.isfinite(value_) and math.isfinite(norm_)):
                self._stop_not_finite(value_, event, context)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if average:
                average.update()
            self.step += 1
            sums += torch.tensor([value_, norm_, 1.0], dtype=torch.float64)
            self.elapsed = self._agree(time.perf_counter() - began)
            bar.update(self._part(), self.step, self.elapsed, value_ / self.per)
            if self._due():
                start = time.perf_counter()
                self._validate(judged, sums, rate)
                bar.validated(self.history[-1]["validation_nats"] / self.per)
                self._write(optimizers, average)
                sums.zero_()
                self.elapsed = self._agree(time.perf_counter() - began)
                self.next_mark = self._mark_after(self.elapsed, self._agree(time.perf_counter() - start))
        self.elapsed = self._agree(time.perf_counter() - began)
        if self.best:
            self.density.load_state_dict(self.best)
        held = _evenly(self.data.validation, 2**16)
        y = None if held.y is None else held.y.to(fabric.device)
        self.density.calibrate(*arguments(self.density, held.tensor().to(fabric.device), y))

    def _initialise(self) -> None:
        split = _evenly(self.data.train, 2**16)
        y = None if split.y is None else split.y.to(self.fabric.device)
        self.density.initialise(*arguments(self.density, split.tensor().to(self.fabric.device), y))

    def _part(self) -> float:
        """How much of the training is done, 0 to 1, by the limit that is nearest."""
        by_time = self.elapsed / self.settings.max_time if self.settings.max_time else 0.0
        return max(by_time, self.step / self.last_step)

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.worse

    def _rows(self) -> Tensor:
        """This rank's rows of the step's batch: a slice of the epoch's permutation, or windows of a text at random."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        if isinstance(self.train.x, Windows):  # too many to permute
            generator = torch.Generator().manual_seed(_mix(self.settings.seed, self.step, -1))
            return torch.randint(len(self.train), (self.batch_size,), generator=generator)[rank::world]
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if place == 0 or not hasattr(self, "_order"):
            generator = torch.Generator().manual_seed(_mix(self.settings.seed, epoch, -1))
            self._order = torch.randperm(len(self.train), generator=generator)
        rows = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        return rows[rank::world]

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        device, x, y = self.fabric.device, self.train.x, self.train.y
        x = x[rows] if isinstance(x, Windows) else x.index_select(0, rows.to(x.device))  # in a third of indexing's time
        x = x.to(device, non_blocking=True)
        return x, None if y is None else y.index_select(0, rows.to(y.device)).to(device, non_blocking=True)

    def _agree(self, elapsed: float) -> float:
        """Every rank takes the first one's clock, so that all stop at the same step."""
        if self.fabric.world_size > 1 and self.settings.max_time:
            return self.fabric.broadcast(elapsed)
        return elapsed

    def _due(self) -> bool:
        if self._part() >= 1:
            return True
        return self.elapsed >= self.next_mark if self.by_time else self.step % self.every == 0

    def _mark_after(self, elapsed: float, took: float) -> float:
        """The next even mark of time, but at least thrice as far ahead as validating and writing took."""
        gap = (self.settings.max_time or math.inf) / VALIDATIONS
        return max((math.floor(elapsed / gap) + 1) * gap if gap < math.inf else 0.0, elapsed + 3 * took)

    def _validate(self, judged: Density, sums: Tensor, rate: float) -> None:
        samples = min(4, default_samples(judged, len(self.validation)))
        if not judged.importance_weighted:  # draws only average, as examples do
            samples = max(1, min(samples, DRAWS // len(self.validation)))
        scores = log_probs(judged, self.validation, samples=samples, seed=self.settings.seed, fabric=self.fabric)
        nats = scores.mean().item()
        loss, norm, count = sums.tolist()
        train = -loss / count
        row = (self.step, self.elapsed, train, nats, rate, norm / count)
        self.history.append(dict(zip(runs.METRICS, row, strict=True)))
        if nats > self.best_nats:
            self.best_nats, self.best_train, self.best_step, self.worse = nats, train, self.step, 0
            self.best = {k: v.detach().clone() for k, v in judged.state_dict().items()}
            self.best_scores = scores
        elif not self.density.warming_up and train > self.best_train:  # else it is no overfitting
            behind = self.best_scores - scores
            error = behind.std().item() / math.sqrt(len(behind)) if len(behind) > 1 else math.inf
            self.worse += int(behind.mean().item() > error)

    def _write(self, optimizers: Sequence[Any], average: _Average | None) -> None:
        """A checkpoint, the best weights and the metrics so far."""
        if self.path is None or not self.fabric.is_global_zero:
            return
        tensors = {f"model.{k}": v for k, v in self.density.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()} if average else {}
        tensors |= checkpoint.flatten_optimizers(optimizers)
        tensors["best_scores"] = self.best_scores
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "best_nats": self.best_nats,
            "best_train": self.best_train,
            "best_step": self.best_step,
            "worse": self.worse,
            "history": self.history,
        }
        if self.best_step == self.step:
            copy_ = copy.deepcopy(self.density)
            copy_.load_state_dict(self.best)
            runs.write_weights(self.path, copy_)
        checkpoint.save(self.path / "checkpoints", self.step, tensors, state)
        runs.write_metrics(self.path, self.history)

    def _restore(
        self, saved: tuple[dict[str, Tensor], dict[str, Any]], optimizers: Sequence[Any], average: Any
    ) -> None:
        tensors, state = saved

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.density.load_state_dict(part("model."))
        if average:
            average.load_state_dict(part("average."))
        checkpoint.restore_optimizers(optimizers, tensors)
        self.best_scores = tensors["best_scores"]
        for name, value in state.items():
            setattr(self, name, value)
        assert self.path is not None
        if self.best_step >= 0:
            self.best = load_file(self.path / "model.safetensors")

    def _stop_not_finite(self, value: float, event: Tensor, context: Tensor | None) -> None:
        if math.isfinite(value):
            bad = [n for n, p in self.density.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            where = f"the gradient of {bad[0] if bad else 'the loss'} is not finite"
        else:
            with torch.no_grad():
                terms = self.density.terms(event, context) or {"log_prob": self.density.log_prob(event, context)}
            named = [name for name, term in terms.items() if not term.isfinite().all()]
            where = f"the loss is {value}" + (f", in its term {named[0]!r}" if named else "")
        if self.best:
            self.density.load_state_dict(self.best)
        kept = f"the weights of step {self.best_step} are kept" if self.best else "no weights were kept yet"
        raise NotFinite(
            f"step {self.step}: {where}; {kept}. Try a lower learning_rate ({self.settings.learning_rate:g} now), a "
            "lower gradient_clip, or precision=32-true, and look for extreme values in the data"
        )


def _evenly(split: Split, most: int) -> Split:
    """At most `most` examples, evenly spaced over the split."""
    step = math.ceil(len(split) / most)
    return Split(split.x[::step], None if split.y is None else split.y[::step])


def _on_device(split: Split, device: torch.device, most_bytes: int = 2**32) -> Split:
    """On the device whole where it is small and not windows of a text."""
    x = split.x
    if device.type == "cpu" or isinstance(x, Windows) or x.numel() * x.element_size() > most_bytes:
        return split
    return Split(x.to(device), None if split.y is None else split.y.to(device))


class _Average(AveragedModel):
    """The moving average of the weights, with a decay that starts low: min(decay, (1 + n) / (10 + n)).

    What to average is listed once: torch's own update sorts all tensors anew at every step, which took as long as the
    averaging.
    """

    def __init__(self, density: Density, decay: float) -> None:
        super().__init__(density)
        self.decay = decay
        kept = density.state_dict().keys()  # a mask, say, is a buffer that never changes
        mine, theirs = self.module, density
        self._means = [p.detach() for p in mine.parameters()]
        self._weights = [p.detach() for p in theirs.parameters()]
        self._copies = [b for name, b in mine.named_buffers() if name in kept]
        self._buffers_now = [b for name, b in theirs.named_buffers() if name in kept]

    @torch.no_grad()
    def update(self) -> None:
        n = int(self.n_averaged)
        now = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        lerp_each_(self._means, self._weights, 1 - now)
        if self._copies:
            copy_each_(self._copies, self._buffers_now)
        self.n_averaged += 1


def _schedule(part: float, step: int, warmup: int) -> float:
    """A linear warm-up, and a half cosine from 1 to 0.01 over the whole training."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))


def _seed(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and one device's; `torch.manual_seed` seeds every kind and takes 0.1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _mix(seed: int, step: int, rank: int) -> int:
    """One seed from three numbers."""
    return ((seed * 1_000_003 + step) * 1_009 + rank + 1) % 2**63
