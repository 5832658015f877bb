"""Whether the samples of a table's density can stand for the table: their fidelity and their privacy, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loglik.data.dataset import Data, Split
from loglik.data.decode import as_written
from loglik.data.limits import quote
from loglik.notebook import listed
from loglik.runs import Run
from loglik.tasks.fidelity import Fidelity, fidelity_of, two_sample_test
from loglik.tasks.privacy import Privacy, columns_of, privacy_of
from loglik.tasks.sample import Samples

__all__ = ["SyntheticReport", "has_synthetic_rows", "synthetic_report"]

MAX_ROWS = 5000  # of each kind
ENOUGH = 1000  # held-out rows for the fidelity; with fewer, training rows too
MIN_SAMPLES = 1000  # for the privacy
NAMED = 3
CLOSE, VISIBLE, POOR = 0.6, 0.75, 0.9  # AUC


@dataclass(frozen=True, repr=False)
class SyntheticReport:
    """Fidelity and privacy of a run's samples.

    Attributes:
        fidelity: of the samples, against `against`.
        privacy: of samples and log p.
        against: which real rows: `held-out rows`, or `rows` where few are held out: shapes and trends are then of all
            rows, and the classifier learns from training rows and is tested on held-out ones.
    """

    fidelity: Fidelity
    privacy: Privacy
    against: str

    @property
    def memorises(self) -> bool:
        """Whether the model memorises its training rows."""
        return self.privacy.memorises

    @property
    def fidelity_verdict(self) -> str:
        """What the two-sample classifier says."""
        auc = self.fidelity.test.auc
        if auc <= CLOSE:
            return "the samples are hard to tell from real rows"
        if auc <= VISIBLE:
            return "the samples are like the real rows, with differences that a classifier finds"
        if auc <= POOR:
            return "a classifier tells most samples from real rows: train longer, or use another model"
        return "the samples are not like the real rows: train longer, or use another model"

    @property
    def privacy_verdict(self) -> str:
        """What the distances and log p say."""
        if self.privacy.samples_memorise:
            return (
                "the model memorises its training rows, and its samples show them: share neither; train for less time"
            )
        if self.privacy.model_memorises:
            return (
                "the model memorises its training rows: log p is higher for them by more than a nat for each of "
                f"{self.privacy.dims} columns, though samples are no nearer to them: share neither; train for less time"
            )
        if self.privacy.overfits:
            return (
                "no sign that training rows are memorised; log p is higher for them, so that someone who has the model "
                f"guesses in {self.privacy.guess:.0%} of cases which of two rows it was trained on: share samples only"
            )
        return "no sign that training rows are memorised"

    def describe(self) -> list[str]:
        """Return the numbers and the verdicts, a line each."""
        f, p = self.fidelity, self.privacy
        test, near = f.test, p.nearest
        visible = [name for name, fall in test.columns.items() if fall > 0.01][:NAMED]
        gaps = [name for name, (real, drawn) in f.missing.items() if real > 0 and drawn == 0]
        lines = [
            f"fidelity: {f.n:,} samples against {f.n:,} {self.against}",
            f"  column shapes {f.shape:.1%}{_least({quote(k): v for k, v in f.shapes.items()})}",
            f"  pair trends {f.trend:.1%}{_least({' and '.join(map(quote, k)): v for k, v in f.pairs.items()})}",
            f"  a classifier tells samples from held-out rows with AUC {test.auc:.2f} ± {test.stderr:.2f} (0.5 is "
            "chance, 1 is always)"
            + (f"; it looks at {', '.join(map(quote, visible))}" if visible and test.auc > CLOSE else ""),
            f"  {self.fidelity_verdict}",
            f"privacy: training rows against {p.rows:,} held-out rows",
            f"  {near.share:.1%} of samples are nearest to a training row ({100 * near.expected:.1f} ± "
            f"{100 * near.usual:.1f} % if nothing is memorised)",
            f"  {near.copies:.1%} of samples are copies of training rows, as are {near.natural_copies:.1%} of the "
            "held-out rows",
            f"  log p is {p.train_nats:.2f} nats for training rows and {p.held_out_nats:.2f} for held-out rows: "
            f"{p.gap:.2f} ± {p.gap_stderr:.2f} more; a training row has the higher one in {p.guess:.1%} of pairs (50 % "
            "is chance)",
            f"  {self.privacy_verdict}",
        ]
        if gaps:
            more = f" and {len(gaps) - NAMED} more" * (len(gaps) > NAMED)
            names = ", ".join(map(quote, gaps[:NAMED])) + more
            lines.insert(5, f'  samples have no missing values in {names}: fit with missing="indicator"')
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        plain = asdict(self)
        plain["fidelity"]["pairs"] = [[*names, score] for names, score in self.fidelity.pairs.items()]
        verdicts = {"memorises": self.memorises, "verdicts": [self.fidelity_verdict, self.privacy_verdict]}
        return plain | {"shape": self.fidelity.shape, "trend": self.fidelity.trend} | verdicts

    def __repr__(self) -> str:
        return listed("SyntheticReport", {
            "auc": f"{self.fidelity.test.auc:.2f}", "shapes": f"{self.fidelity.shape:.1%}",
            "trends": f"{self.fidelity.trend:.1%}", "near-copies": f"{self.privacy.nearest.near_copies[0]:.1%}",
            "memorises": self.memorises,
        })  # fmt: skip


def has_synthetic_rows(run: Run) -> bool:
    """Return whether a run's density draws whole rows of a table or of vectors."""
    spec = run.spec
    return (
        run.density.event == "x" and spec.kind in ("table", "array") and not spec.inputs and len(spec.event_shape) == 1
    )


def synthetic_report(run: Run, data: Any = None, *, n: int | None = None, seed: int = 0) -> SyntheticReport:
    """Return the fidelity and the privacy of samples of a run.

    Args:
        run: of a table, or of an array of vectors.
        data: what the run was trained on; only for data in memory, or that were moved.
        n: the number of samples and of real rows that are compared, at most 5,000 by default.
        seed: of the samples.

    Raises ValueError where a run's samples are no rows of a table, and where too few rows are held out.
    """
    if not has_synthetic_rows(run):
        what = "p(label | data)" if run.density.event == "y" else run.spec.describe()
        raise ValueError(f"fidelity and privacy are of samples of whole rows, and {run.path or 'this run'} has {what}")
    dataset = data if isinstance(data, Data) else run.data_for(data)
    held_out = _joined(dataset.test, dataset.validation)
    count, few = n or MAX_ROWS, len(held_out) < ENOUGH
    random = torch.Generator().manual_seed(seed)
    rows, labels = _some(held_out, count, random)
    known = _some(dataset.train, count, random)[0] if few else rows[:0]
    size = max(len(known) + len(rows), MIN_SAMPLES)
    context = None if labels is None or not run.density.conditional else labels[torch.arange(size) % len(rows)]
    columns = columns_of(run.spec)
    sampled = Samples(run.density, run.spec, size, seed=seed, inputs=context).tensor().flatten(1)
    sampled, written = as_written(sampled, columns)
    drawn = sampled.double().numpy()
    held, training = (as_written(x, columns)[0].double().numpy() for x in (rows, known))
    tested = drawn[: len(known) + len(rows)]
    test = two_sample_test(held, tested, written, training=training if few else None, seed=seed)
    real = np.concatenate([held, training])[:count]
    fidelity = fidelity_of(real, drawn[: len(real)], written, test, seed=seed)
    privacy = privacy_of(run.density, run.spec, sampled, dataset.train, held_out, seed=seed)
    return SyntheticReport(fidelity, privacy, "rows" if few else "held-out rows")


def _some(split: Split, count: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Return at most `count` rows of a split, and their labels."""
    x, y = split.batch(torch.randperm(len(split), generator=random)[:count])
    return x.flatten(1), y


def _joined(a: Split, b: Split) -> Split:
    y = None if a.y is None or b.y is None else torch.cat([a.y[:], b.y[:]])
    return Split(torch.cat([a.tensor(), b.tensor()]), y)


def _least(scores: dict[str, float]) -> str:
    """Return the names with the lowest scores, in words."""
    worst = sorted(scores, key=scores.__getitem__)[:NAMED]
    return ": lowest " + ", ".join(f"{name} {scores[name]:.1%}" for name in worst) if worst else ""
