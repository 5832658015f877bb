"""The training loop, over Lightning Fabric.

The order of the data and the noise are functions of the seed and the step, so a run that was killed and is resumed ends
with the weights that it would have had, bit for bit, on the same machine (with `max_steps` or `max_epochs`; a time
limit stops where the clock says).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from loglik import runs
from loglik.data.dataset import Data, Split
from loglik.data.limits import shorten
from loglik.density import Density
from loglik.evaluation.scores import arguments, check_split
from loglik.training import checkpoint
from loglik.training.average import MovingAverage
from loglik.training.batch_norm import share_statistics
from loglik.training.batches import Batches
from loglik.training.callbacks import Callbacks
from loglik.training.compilation import Loss, choose_compilation, compiler_settings
from loglik.training.early_stopping import EarlyStopping
from loglik.training.learning_rate import rate_factor
from loglik.training.not_finite import NotFinite
from loglik.training.optimizers import optimizers_of
from loglik.training.progress import Progress
from loglik.training.settings import TrainingSettings
from loglik.training.sharding import (
    gather,
    gather_into,
    is_sharded,
    load_shards,
    shard_like,
    shard_optimizers,
    shard_tensors,
    trained_copy,
)
from loglik.training.signals import Interrupted, StopRequest, stop_request
from loglik.training.state import TrainerState
from loglik.training.step import Step, defers
from loglik.training.validation import Validation

__all__ = ["Trainer"]

STEPS_BETWEEN_SIGNAL_CHECKS = 16  # on several ranks, which check together whether one received a signal
CALIBRATION_EXAMPLES, CALIBRATION_VALUES = 2**16, 2**26  # at most, for `initialise` and `calibrate`


class Trainer:
    """Train a density on data: `run` prepares and makes the steps; `initialise_only` fits a density without parameters.

    Args:
        fabric: launched; its device, precision and ranks.
        density: trained in place.
        data: the training and validation splits.
        settings: how to train, with a limit.
        path: the run's folder, for checkpoints, metrics and the best weights; None keeps the run in memory.
        report: called with a line about where a resumed training begins, and about compilation.
        chosen: what `auto` chose, as config.yaml records it; a resumed training repeats it, others add to it.
        callbacks: what is called after steps and validations, and may stop the training.
        config: of the run that callbacks see.
    """

    optimizers: list[Any]
    steps: Step
    average: MovingAverage | None
    trained: Density  # the density; in shards, a copy
    evaluated: Density

    def __init__(
        self,
        fabric: Fabric,
        density: Density,
        data: Data,
        settings: TrainingSettings,
        path: Path | None,
        report: Callable[[str], None] = lambda line: None,
        chosen: dict[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        config: dict[str, Any] | None = None,
    ) -> None:
        self.callbacks, self.config = Callbacks(callbacks, fabric), config or {}
        self.chosen = {} if chosen is None else chosen
        self.report = report if fabric.is_global_zero else lambda line: None
        self.fabric, self.density, self.data, self.settings, self.path = fabric, density, data, settings, path
        self.tokens = data.train.units_per_example  # the bar shows nats per token of a text, else per example
        self.batches = Batches(
            data.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            fabric=fabric,
            accumulate=settings.accumulate,
        )
        epoch = self.batches.steps_per_epoch
        self.last_step = min([settings.max_steps or math.inf, (settings.max_epochs or math.inf) * epoch])
        self.validation = Validation(data, settings, fabric, epoch)
        self.trainable = any(p.requires_grad for p in density.parameters())
        self.step, self.elapsed = 0, 0.0
        self.stopping = EarlyStopping(settings.patience)
        self.best_weights: dict[str, Tensor] = {}
        self.best_written = True
        self.history: list[dict[str, float]] = []
        self.restored_sums: Tensor | None = None

    def initialise_only(self) -> None:
        """Fit a density that has nothing to train."""
        self.density.to(self.fabric.device)
        self.density.initialise(*self._examples(self.data.train))

    def run(self, bar: Progress, resume: bool) -> None:
        """Train to the limit or until patience ends, and leave the density with the weights of the best validation."""
        with compiler_settings(self.settings.compile, self.fabric.device), stop_request() as stop:
            self.prepare(resume)
            self.train(bar, stop)
        self._take_best()
        self.density.calibrate(*self._examples(self.data.validation))

    def train(self, bar: Progress, stop: StopRequest) -> None:
        """Make steps up to the limit or until patience ends, with the validations between."""
        began = time.perf_counter() - self.elapsed
        stopped = False
        while (fraction := self._fraction_done()) < 1 and not (self.stopping.out_of_patience or stopped):
            rate = self.settings.learning_rate * rate_factor(fraction, self.step, self.settings.warmup)
            self.steps.take(self.step, fraction, rate)
            self.step += 1
            self.elapsed = self._agree(time.perf_counter() - began)
            self._tell_step(rate)
            stopped = self.callbacks.stop_at(self.step)
            due = self._fraction_done() >= 1 or stopped or self.validation.due(self.step, self.elapsed)
            self._check_finite(look=due)
            bar.update(self._fraction_done(), self.step, self.elapsed, self.steps.loss / self.tokens)
            if due:
                start = time.perf_counter()
                self._validate(rate)
                bar.validated(self.history[-1]["validation_nats"] / self.tokens)
                self._write()
                self.elapsed = self._agree(time.perf_counter() - began)
                self.validation.schedule_next(self.elapsed, self._agree(time.perf_counter() - start))
                self.callbacks.on_validation(self.step, self.history[-1], self.run_so_far())
                stopped = stopped or self.callbacks.stop_at(self.step)
            self._stop_if_requested(stop)
        self.elapsed = self._agree(time.perf_counter() - began)

    def _tell_step(self, rate: float) -> None:
        if self.callbacks.callbacks:
            metrics = {"loss": self.steps.loss, "learning_rate": rate, "time": self.elapsed}
            self.callbacks.on_step(self.step, metrics, self.run_so_far())

    def run_so_far(self) -> runs.Run:
        """Return the run as callbacks see it, with the weights that validations score."""
        return runs.Run(self.evaluated, self.data.spec, self.config, self.history, self.path)

    def _stop_if_requested(self, stop: StopRequest) -> None:
        """Write a checkpoint and raise `Interrupted` if a signal came; several ranks agree on it every few steps."""
        number = stop.number
        if self.fabric.world_size > 1:
            if self.step % STEPS_BETWEEN_SIGNAL_CHECKS:
                return
            signal = torch.tensor(number, device=self.fabric.device)
            number = int(self.fabric.all_reduce(signal, reduce_op="max"))  # type: ignore[arg-type]
        if number:
            if not self.history or self.history[-1]["step"] != self.step:  # else the validation wrote it
                self._check_finite(look=True)
                self._write()
            raise Interrupted(number, self.step, self.path)

    def prepare(self, resume: bool) -> None:
        """Set up the module, the optimizers and the average; start from data or from the newest checkpoint."""
        check_split(self.density, self.data.train)
        saved = self._saved(self.path) if resume and self.path else None
        self.density.to(self.fabric.device)
        if saved is None:
            self.density.initialise(*self._examples(self.data.train))
        share_statistics(self.density, self.fabric, self.settings.accumulate, self.report)
        self.trained = trained_copy(self.density) if is_sharded(self.fabric) else self.density
        self.average = MovingAverage(self.trained, self.settings.ema_decay) if self.settings.ema_decay else None
        module = self.fabric.setup_module(Loss(self.trained))
        optimizers = optimizers_of(self.trained, self.settings, deferred=defers(self.fabric, self.settings.precision))
        self.optimizers = [self.fabric.setup_optimizers(optimizer) for optimizer in optimizers]
        self.evaluated = self.average.module if self.average else self.trained  # type: ignore[assignment]
        if self.average and is_sharded(self.fabric):
            shard_tensors(self.average.module, self.trained)
            self.average.list_tensors(self.trained)
        if saved is not None:
            self._restore(*saved)
        compiled = self._choose_compilation(module)
        parts = (self.trained, module, self.optimizers, self.average, self.batches)
        self.steps = Step(self.fabric, *parts, self.settings, self.report, compiled=compiled, whole=self.density)
        if self.restored_sums is not None:
            self.steps.sums.copy_(self.restored_sums)

    def _choose_compilation(self, module: nn.Module) -> bool:
        """Compile the steps where that was requested, recorded, or pays; choosing counts as training time."""
        requested, recorded = self.settings.compile, self.chosen.get("compile")
        if self.settings.checkpoint or (requested == "auto" and self.fabric.world_size * self.settings.accumulate > 1):
            if requested is True:
                self.report("not compiled: checkpoint=true computes blocks again, and compiled ones cannot be")
            requested = recorded = False  # compiled parts of a batch would not share their noise
        choice = choose_compilation(
            module,
            lambda: arguments(self.density, *self.batches.batch(self.step)),
            self.fabric,
            requested=requested,
            recorded=recorded,
            seconds_left=self._seconds_left,
            cuda_graph=self.settings.cuda_graph,
        )
        self.elapsed += choice.seconds
        if choice.line:
            self.report(choice.line)
        if self.chosen.get("compile") != choice.compiled:
            self.chosen["compile"] = choice.compiled
            if choice.line and self.path and self.fabric.is_global_zero:
                runs.write_config(self.path, {**runs.read_config(self.path), "chosen": self.chosen})
        return choice.compiled

    def _seconds_left(self, step: float) -> float:
        """Return the seconds of training left if a step takes so many."""
        by_time = self.settings.max_time - self.elapsed if self.settings.max_time else math.inf
        return min(by_time, step * (self.last_step - self.step))

    def _saved(self, path: Path) -> tuple[dict[str, Tensor], TrainerState] | None:
        """Return the newest intact checkpoint; None if the run was stopped before its first.

        Raises ValueError if there is none although the run was trained: training anew would overwrite its weights.
        """
        saved = checkpoint.load_newest(path / "checkpoints", self.report)
        if saved is not None:
            self.report(f"{path}: training continues at step {saved[1].step}")
            return saved
        written = [path / name for name in (runs.WEIGHTS, "metrics.csv") if (path / name).exists()]
        if written := written + sorted((path / "checkpoints").glob("*.sha256")):
            raise ValueError(
                f"{path} has {written[0].relative_to(path)}, but no intact checkpoint that training could continue "
                "from: copy its folder checkpoints from where it is intact, or train anew with another out="
            )
        self.report(f"{path}: training starts at step 0, since it was stopped before its first checkpoint")
        return None

    def _examples(self, split: Split) -> tuple[Tensor, Tensor | None]:
        """Return the event and the context of evenly spaced examples, on the device."""
        split = split.evenly(max(1, min(CALIBRATION_EXAMPLES, CALIBRATION_VALUES // self.data.spec.dims)))
        y = split.labels()
        y = None if y is None else y.to(self.fabric.device)
        return arguments(self.density, split.tensor().to(self.fabric.device), y)

    def _fraction_done(self) -> float:
        """Return how much of the training is done, 0 to 1, by the nearest limit."""
        by_time = self.elapsed / self.settings.max_time if self.settings.max_time else 0.0
        return max(by_time, self.step / self.last_step)

    def _agree(self, seconds: float) -> float:
        """Return the first rank's seconds on every rank, so that all stop at the same step."""
        if self.fabric.world_size > 1 and self.settings.max_time:
            return self.fabric.broadcast(seconds)
        return seconds

    def _validate(self, rate: float) -> None:
        """Evaluate the validation subset, add a row to the history, and keep the weights if they are the best.

        Raises `NotFinite` if no validation was finite so far.
        """
        density = self.evaluated
        if is_sharded(self.fabric):
            gather_into(self.density, density.state_dict())
            density = self.density
        scores = self.validation.scores(density)
        loss, norm = self.steps.means()
        if self.fabric.world_size > 1:  # rank 0 decides
            loss, norm, scores = self.fabric.broadcast((loss, norm, scores))
        row = (self.step, self.elapsed, -loss, scores.mean().item(), rate, norm)
        self.history.append(dict(zip(runs.METRICS, row, strict=True)))
        keep_last = any(part.keep_last for part in self.trained.modules() if isinstance(part, Density))
        warming_up = self.trained.warming_up
        if self.stopping.update(self.step, scores, -loss, warming_up=warming_up, keep_last=keep_last):
            self.best_weights = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}
        if self.stopping.step < 0:
            self._stop_not_finite(f"the first validation is {row[3]} nats")

    def _state(self) -> TrainerState:
        best = self.stopping
        return TrainerState(
            step=self.step,
            elapsed=self.elapsed,
            best_nats=best.nats,
            best_train=best.train_nats,
            best_step=best.step,
            worse=best.worse,
            history=tuple(self.history),
        )

    def _write(self) -> None:
        """Write a checkpoint, the best weights if they are new, and the metrics so far.

        The checkpoint comes first: where there are weights, there is a checkpoint, and one of the best step contains
        the best weights.
        """
        if self.path is None:
            return
        tensors = {f"model.{k}": v for k, v in self.trained.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()} if self.average else {}
        tensors |= checkpoint.flatten_optimizers(self.optimizers)
        tensors |= {"best_scores": self.stopping.scores, "sums": self.steps.sums}
        tensors = gather(tensors, keep=self.fabric.is_global_zero)
        is_best = self.stopping.step == self.step
        late = not (is_best or self.best_written)
        best = gather(self.best_weights, keep=self.fabric.is_global_zero) if is_best or late else {}
        self.best_written = True  # on every rank, as all gather
        if not self.fabric.is_global_zero:
            return
        if late:
            self._write_best(self.path, best)
        checkpoint.save(self.path / "checkpoints", tensors, self._state(), keep=self.settings.keep)
        if is_best:
            self._write_best(self.path, best)
        runs.write_metrics(self.path, self.history)

    def _write_best(self, path: Path, weights: dict[str, Tensor]) -> None:
        best = copy.deepcopy(self.density)
        best.load_state_dict(weights)
        runs.write_weights(path, best)

    def _restore(self, tensors: dict[str, Tensor], state: TrainerState) -> None:
        """Continue from a checkpoint."""

        def with_prefix(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        assert self.path is not None
        best = self.stopping
        try:
            load_shards(self.trained, with_prefix("model."))
            if self.average:
                load_shards(self.average, with_prefix("average."))
            checkpoint.restore_optimizers(self.optimizers, shard_optimizers(self.optimizers, tensors))
            best.scores = tensors["best_scores"]
            self.restored_sums = tensors["sums"].reshape(3)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            why = shorten(str(error), 300)
            raise ValueError(
                f"the checkpoint of step {state.step} in {self.path} is not of this model: {why}"
            ) from error
        self.step, self.elapsed, self.history = state.step, state.elapsed, list(state.history)
        best.nats, best.train_nats = state.best_nats, state.best_train
        best.step, best.worse = state.best_step, state.worse
        if best.step >= 0:
            self._restore_best(self.path)

    def _restore_best(self, path: Path) -> None:
        """Take the best weights from the checkpoint if it is of their step, else from the run.

        The weights of a finished run are calibrated, those of a checkpoint are not. The run's weights stay as they are
        until the next validation: they may be of a later step, whose checkpoint is damaged.
        """
        here = self.stopping.step == self.step
        finished = runs.read_config(path).get("steps") == self.step
        if here and not (finished and (path / runs.WEIGHTS).exists()):
            self.best_weights = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}
            self.best_written = False
            return
        try:
            own = self.evaluated.state_dict()
            best = runs.read_weights(path, self.density)
            self.best_weights = {k: shard_like(v, own[k]) for k, v in best.items()}
        except (FileNotFoundError, ValueError) as error:
            what = f"training cannot continue without the weights of step {self.stopping.step}, its best"
            other = f"; or delete {runs.WEIGHTS} to take them from the checkpoint of this step" if here else ""
            raise ValueError(f"{what}: {error}{other}") from error

    def _check_finite(self, *, look: bool) -> None:
        """Raise `NotFinite` if a step was not finite; with `look`, wait for steps that the device has yet to make."""
        failed = self.steps.failed(look)
        if failed is not None:
            self.step = failed
            self._stop_not_finite(self.steps.explain(failed))

    def _take_best(self) -> None:
        """Give the density the weights of the best validation."""
        if self.best_weights:
            gather_into(self.density, self.best_weights)

    def _stop_not_finite(self, where: str) -> NoReturn:
        """Put the best weights back and raise `NotFinite`."""
        self._take_best()
        if self.best_weights:
            kept = f"the weights of step {self.stopping.step} are kept" + (f" in {self.path}" if self.path else "")
        else:
            kept = "no weights were kept yet" + (f": {self.path} has a config.yaml only" if self.path else "")
        raise NotFinite(
            f"step {self.step}: {where}; {kept}. Try a lower learning_rate ({self.settings.learning_rate:g} now), a "
            "lower gradient_clip, or precision=32-true, and look for extreme values in the data"
        )
