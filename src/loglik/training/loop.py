"""The training loop, over Lightning Fabric.

The order of the data and the noise are functions of the seed and the step, so a run that was killed and is resumed ends
with the weights that it would have had, bit for bit, on the same machine (with `max_steps` or `max_epochs`; a time
limit stops where the clock says).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lightning_fabric import Fabric
from torch import Tensor, nn

from loglik import runs
from loglik.data.dataset import Data, Split
from loglik.density import Density
from loglik.evaluation.scores import arguments, check_split, default_samples, log_probs
from loglik.training import checkpoint
from loglik.training.average import MovingAverage
from loglik.training.batch_norm import share_statistics
from loglik.training.batches import MAX_BYTES, Batches
from loglik.training.compilation import Loss, choose_compilation, compiler_settings
from loglik.training.early_stopping import EarlyStopping
from loglik.training.learning_rate import rate_factor
from loglik.training.not_finite import NotFinite
from loglik.training.optimizers import optimizers_of
from loglik.training.progress import Progress
from loglik.training.settings import TrainingSettings
from loglik.training.state import TrainerState
from loglik.training.step import Step, defers

__all__ = ["Trainer"]

VALIDATIONS = 25  # of a run whose only limit is time
VALIDATION_TOKENS = 2**15  # of a text, at most, in a validation
VALIDATION_DRAWS = 512  # draws over all examples of a validation that suffice where draws only average
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
    """

    optimizers: list[Any]
    steps: Step
    average: MovingAverage | None
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
    ) -> None:
        self.chosen = {} if chosen is None else chosen
        self.report = report if fabric.is_global_zero else lambda line: None
        self.fabric, self.density, self.data, self.settings, self.path = fabric, density, data, settings, path
        dims, text = data.spec.dims, data.train.unit == "token"
        self.tokens = data.train.units_per_example  # the bar shows nats per token of a text, else per example
        max_examples = max(64, VALIDATION_TOKENS // dims) if text else max(128, min(1024, 2**19 // dims))
        self.validation = data.validation.evenly(max_examples).to(fabric.device, max_bytes=MAX_BYTES)
        self.batches = Batches(
            data.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            fabric=fabric,
            accumulate=settings.accumulate,
        )
        epoch = self.batches.steps_per_epoch
        self.last_step = min([settings.max_steps or math.inf, (settings.max_epochs or math.inf) * epoch])
        self.validate_every = settings.validate_every or max(25, min(500, epoch))
        self.validates_by_time = settings.max_time is not None and settings.validate_every is None
        self.trainable = any(p.requires_grad for p in density.parameters())
        self.step, self.elapsed, self.next_validation = 0, 0.0, 0.0
        self.stopping = EarlyStopping(settings.patience)
        self.best_weights: dict[str, Tensor] = {}
        self.best_written = True
        self.history: list[dict[str, float]] = []

    def initialise_only(self) -> None:
        """Fit a density that has nothing to train."""
        self.density.to(self.fabric.device)
        self.density.initialise(*self._examples(self.data.train))

    def run(self, bar: Progress, resume: bool) -> None:
        """Train to the limit or until patience ends, and leave the density with the weights of the best validation."""
        with compiler_settings(self.settings.compile, self.fabric.device):
            self.prepare(resume)
            self.train(bar)
        if self.best_weights:
            self.density.load_state_dict(self.best_weights)
        self.density.calibrate(*self._examples(self.data.validation))

    def train(self, bar: Progress) -> None:
        """Make steps up to the limit or until patience ends, with the validations between."""
        began = time.perf_counter() - self.elapsed
        while (fraction := self._fraction_done()) < 1 and not self.stopping.out_of_patience:
            rate = self.settings.learning_rate * rate_factor(fraction, self.step, self.settings.warmup)
            self.steps.take(self.step, fraction, rate)
            self.step += 1
            self.elapsed = self._agree(time.perf_counter() - began)
            due = self._validation_due()
            self._check_finite(look=due)
            bar.update(self._fraction_done(), self.step, self.elapsed, self.steps.loss / self.tokens)
            if due:
                start = time.perf_counter()
                self._validate(rate)
                bar.validated(self.history[-1]["validation_nats"] / self.tokens)
                self._write()
                self.elapsed = self._agree(time.perf_counter() - began)
                self.next_validation = self._next_after(self._agree(time.perf_counter() - start))
        self.elapsed = self._agree(time.perf_counter() - began)

    def prepare(self, resume: bool) -> None:
        """Set up the module, the optimizers and the average; start from data or from the newest checkpoint."""
        check_split(self.density, self.data.train)
        saved = self._saved(self.path) if resume and self.path else None
        self.density.to(self.fabric.device)
        if saved is None:
            self.density.initialise(*self._examples(self.data.train))
        share_statistics(self.density, self.fabric, self.settings.accumulate, self.report)
        optimizers = optimizers_of(
            self.density, self.settings, deferred=defers(self.fabric.device, self.settings.precision)
        )
        module, *self.optimizers = self.fabric.setup(Loss(self.density), *optimizers)
        self.average = MovingAverage(self.density, self.settings.ema_decay) if self.settings.ema_decay else None
        self.evaluated = self.average.module if self.average else self.density  # type: ignore[assignment]
        if saved is not None:
            self._restore(*saved)
        self._choose_compilation(module)
        self.steps = Step(
            self.fabric,
            self.density,
            module,
            self.optimizers,
            self.average,
            self.batches,
            self.settings,
            self.report,
        )

    def _choose_compilation(self, module: nn.Module) -> None:
        """Compile the steps where that was requested, recorded, or pays; choosing counts as training time."""
        requested = self.settings.compile
        if self.settings.checkpoint or (requested == "auto" and self.fabric.world_size * self.settings.accumulate > 1):
            if requested is True:
                self.report("not compiled: checkpoint=true computes blocks again, and compiled ones cannot be")
            requested = False  # compiled parts of a batch would not share their noise
        choice = choose_compilation(
            module,
            arguments(self.density, *self.batches.batch(self.step)),
            self.fabric,
            requested=requested,
            recorded=self.chosen.get("compile"),
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
        y = None if split.y is None else split.y.to(self.fabric.device)
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

    def _validation_due(self) -> bool:
        if self._fraction_done() >= 1:
            return True
        return self.elapsed >= self.next_validation if self.validates_by_time else self.step % self.validate_every == 0

    def _next_after(self, took: float) -> float:
        """Return when to validate next: at an even time, but not before 3x the seconds that validating took."""
        gap = (self.settings.max_time or math.inf) / VALIDATIONS
        even = (math.floor(self.elapsed / gap) + 1) * gap if gap < math.inf else 0.0
        return max(even, self.elapsed + 3 * took)

    def _validate(self, rate: float) -> None:
        """Evaluate the validation subset, add a row to the history, and keep the weights if they are the best.

        Raises `NotFinite` if no validation was finite so far.
        """
        density, size = self.evaluated, len(self.validation)
        samples = min(4, default_samples(density, size))
        if not density.importance_weighted:  # draws only average, as examples do
            samples = max(1, min(samples, VALIDATION_DRAWS // size))
        scores = log_probs(density, self.validation, samples=samples, seed=self.settings.seed, fabric=self.fabric)
        loss, norm = self.steps.means()
        if self.fabric.world_size > 1:  # rank 0 decides
            loss, norm, scores = self.fabric.broadcast((loss, norm, scores))
        row = (self.step, self.elapsed, -loss, scores.mean().item(), rate, norm)
        self.history.append(dict(zip(runs.METRICS, row, strict=True)))
        if self.stopping.update(self.step, scores, -loss, warming_up=self.density.warming_up):
            self.best_weights = {k: v.detach().clone() for k, v in density.state_dict().items()}
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
        if self.path is None or not self.fabric.is_global_zero:
            return
        tensors = {f"model.{k}": v for k, v in self.density.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()} if self.average else {}
        tensors |= checkpoint.flatten_optimizers(self.optimizers)
        tensors["best_scores"] = self.stopping.scores
        is_best = self.stopping.step == self.step
        if not (is_best or self.best_written):
            self._write_best(self.path)
        checkpoint.save(self.path / "checkpoints", tensors, self._state())
        if is_best:
            self._write_best(self.path)
        runs.write_metrics(self.path, self.history)

    def _write_best(self, path: Path) -> None:
        best = copy.deepcopy(self.density)
        best.load_state_dict(self.best_weights)
        runs.write_weights(path, best)
        self.best_written = True

    def _restore(self, tensors: dict[str, Tensor], state: TrainerState) -> None:
        """Continue from a checkpoint."""

        def with_prefix(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        assert self.path is not None
        best = self.stopping
        try:
            self.density.load_state_dict(with_prefix("model."))
            if self.average:
                self.average.load_state_dict(with_prefix("average."))
            checkpoint.restore_optimizers(self.optimizers, tensors)
            best.scores = tensors["best_scores"]
        except (RuntimeError, KeyError, ValueError) as error:
            why = " ".join(str(error).split())
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
            self.best_weights = runs.read_weights(path, self.density)
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

    def _stop_not_finite(self, where: str) -> NoReturn:
        """Put the best weights back and raise `NotFinite`."""
        if self.best_weights:
            self.density.load_state_dict(self.best_weights)
        if self.best_weights:
            kept = f"the weights of step {self.stopping.step} are kept" + (f" in {self.path}" if self.path else "")
        else:
            kept = "no weights were kept yet" + (f": {self.path} has a config.yaml only" if self.path else "")
        raise NotFinite(
            f"step {self.step}: {where}; {kept}. Try a lower learning_rate ({self.settings.learning_rate:g} now), a "
            "lower gradient_clip, or precision=32-true, and look for extreme values in the data"
        )
