r"""Classifiers from elsewhere as densities $p(y \mid x) = \text{softmax}(l(x))_y$ of the label, given the data.

A module of PyTorch (timm, torchvision, transformers) has logits l or probabilities, a classifier of scikit-learn has
log-probabilities. B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.hf_folder import labels_of, load_pretrained
from loglik.adapters.pixels import Pixels, pixels_of
from loglik.classification import Classifier
from loglik.data.decode import decode
from loglik.data.limits import first_line, quote, some
from loglik.data.spec import Column, DataSpec
from loglik.inputs import floating_tensor
from loglik.runs import Run

__all__ = ["ForeignClassifier", "classifier", "load_images"]

TOLERANCE = 1e-3  # of a sum of probabilities
MIN_ROWS = 8  # of outputs between 0 and 1 that one logit for each row would hardly have


class ForeignClassifier(Classifier):
    """A classifier of another library: `class_names` in the order of its labels, and `notes` on its numbers."""

    def __init__(
        self,
        network: nn.Module,
        names: tuple[str, ...],
        classes: int,
        *,
        prepare: nn.Module | None,
        notes: tuple[str, ...],
    ) -> None:
        super().__init__(network, nn.Identity(), classes, prepare=prepare)
        self.class_names, self.notes = names, notes


def classifier(
    model: Any,
    *,
    classes: Sequence[Any] | int | None = None,
    spec: DataSpec | None = None,
    outputs: str | None = None,
    prepare: nn.Module | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    levels: int | None = None,
) -> ForeignClassifier:
    """Return a trained classifier as the density p(y | x) of labels y given data x.

    Args:
        model: a module or function from x to outputs (B, C), or an object that has them as `logits`; of two classes
            also (B,) or (B, 1), the logit or probability of the second. Or a classifier of scikit-learn, also a
            pipeline, which gets the columns by their names if it was fitted with names.
        classes: the names of the outputs, in their order, or their number; of scikit-learn its `classes_` if None.
        spec: of the data: the outputs are put in the order of its class names.
        outputs: `logits` or `probabilities`; if None, logits, and an error where the outputs are probabilities.
        prepare: from x to the module's input; if None, integers of images are divided by levels-1, and then:
        mean, std: subtracted and divided by, one for each channel, of values between 0 and 1.
        size: the height and width that images are resized to.
        channels: of the module's images; a grey image is repeated.
        levels: of integer images; those of `spec`, or 256.

    Raises ValueError where the classes and the outputs differ, and for an estimator without probabilities.
    """
    names: Sequence[Any] = () if classes is None or isinstance(classes, int) else classes
    if not isinstance(model, nn.Module) and (hasattr(model, "predict") or hasattr(model, "classes_")):
        network: nn.Module = _Estimator(model, spec)
        names = names or model.classes_
        outputs = "logits"  # log-probabilities are logits
    else:
        network = model if isinstance(model, nn.Module) else _Function(model)
        kwargs: dict[str, Any] = {"mean": mean, "std": std, "size": size, "channels": channels}
        given = levels or (spec.levels if spec is not None and spec.kind == "image" else None) or 256
        prepare = Pixels(given, **kwargs) if prepare is None else prepare
    known = tuple(map(_name, names))
    count = len(known) or (classes if isinstance(classes, int) else len(spec.classes) if spec is not None else 0)
    if count < 2:
        raise ValueError("give classes=, the names of the outputs in their order, or their number, at least 2")
    if len(set(known)) < len(known):
        raise ValueError(f"classes are {some(known)}: two have the same name")
    notes: tuple[str, ...] = ()
    order = list(range(count))
    if spec is not None:
        order, notes = _order(known, count, spec)
        known = spec.classes
    return ForeignClassifier(_Logits(network, count, order, outputs), known, count, prepare=prepare, notes=notes)


def _name(value: Any) -> str:
    """Return a class as the reader of data names it."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _order(names: tuple[str, ...], count: int, spec: DataSpec) -> tuple[list[int], tuple[str, ...]]:
    """Return the outputs in the order of the data's classes, and what is to be said of it.

    Raises ValueError where the classes differ.
    """
    own = spec.classes
    if not own:
        raise ValueError(f"the data have no labels: {spec.describe()}; a classifier is p(label | data)")
    if set(names) == set(own):
        return [names.index(name) for name in own], ()
    if count == len(own) and (not names or own == tuple(map(str, range(count)))):  # the labels are numbers of outputs
        return list(range(count)), (f"the model's {count} outputs are taken as {some(own)}, in this order",)
    if not names:
        raise ValueError(f"the model has {count} classes, and the data {len(own)}: {some(own)}")
    model = sorted(set(names) - set(own)) or names
    data = sorted(set(own) - set(names)) or own
    raise ValueError(
        f"the model's classes and the data's differ: the model has {some(model)}, the data {some(data)}; pass "
        "classes=, the data's names in the order of the model's outputs"
    )


class _Logits(nn.Module):
    """The logits of a model in the order of the labels, after checks of its outputs."""

    def __init__(self, model: nn.Module, classes: int, order: list[int], outputs: str | None) -> None:
        super().__init__()
        if outputs not in (None, "logits", "probabilities"):
            raise ValueError(f"outputs must be logits or probabilities, got {quote(outputs)}")
        self.model, self.classes, self.outputs = model, classes, outputs
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.in_order = order == list(range(classes))

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        like = floating_tensor(self.model)
        if like is not None and x.is_floating_point():
            x = x.to(like.dtype)
        found = self._columns(self.model(x))
        if not torch.compiler.is_compiling() and not found.is_meta:
            self._check(found)
        logits = self._as_logits(found)
        return logits if self.in_order else logits[:, self.get_buffer("order")]

    def _columns(self, out: Any) -> Tensor:
        out = getattr(out, "logits", out)
        out = out[0] if isinstance(out, (tuple, list)) else out
        if not isinstance(out, Tensor):
            raise ValueError(
                f"the model returns {type(out).__name__}: it must return a tensor, or an object with logits"
            )
        out = out[:, None] if out.dim() == 1 else out
        one = self.classes == 2 and out.dim() == 2 and out.shape[1] == 1
        if not one and (out.dim() != 2 or out.shape[1] != self.classes):
            shape = (len(out), self.classes)
            raise ValueError(
                f"the model returns {tuple(out.shape)} for examples of {self.classes} classes: expected {shape}"
            )
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out

    def _check(self, out: Tensor) -> None:
        """Raise ValueError for probabilities where logits are expected, and the other way."""
        inside = bool((out >= 0).all() & (out <= 1 + TOLERANCE).all())
        one, total = out.shape[1] == 1, out.sum(1)
        sums = one or bool(((total - 1).abs() < TOLERANCE).all())
        if self.outputs == "probabilities" and not (inside and sums):
            low, high = (total if not one else out).aminmax()
            found = f"{'lie between' if one else 'have rows that sum to'} {low:.3g} ... {high:.3g}"
            raise ValueError(f'outputs="probabilities", and the model\'s outputs {found}: pass outputs="logits"')
        if self.outputs is None and inside and sums and (not one or len(out) >= MIN_ROWS):
            rows = "lie between 0 and 1" if one else "are not negative and sum to 1 in each row"
            raise ValueError(
                f'the model\'s outputs {rows}: pass outputs="probabilities", or outputs="logits" if they are logits'
            )

    def _as_logits(self, out: Tensor) -> Float[Tensor, "B C"]:
        if out.shape[1] == 1:
            out = torch.cat([1 - out if self.outputs == "probabilities" else torch.zeros_like(out), out], 1)
        return out.log() if self.outputs == "probabilities" else out


class _Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        if not callable(function):
            raise ValueError(
                f"a model must be a module, a function or a classifier of scikit-learn, got {type(function).__name__}"
            )
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class _Estimator(nn.Module):
    """The log-probabilities of a classifier of scikit-learn."""

    def __init__(self, estimator: Any, spec: DataSpec | None) -> None:
        super().__init__()
        name = type(estimator).__name__
        if not hasattr(estimator, "classes_"):
            raise ValueError(f"{name} is not fitted: call its fit(x, y) first")
        if not hasattr(estimator, "predict_proba"):
            raise ValueError(f"{name} has no predict_proba: wrap it in sklearn.calibration.CalibratedClassifierCV")
        if isinstance(estimator.classes_, list):
            raise ValueError(f"{name} predicts {len(estimator.classes_)} labels at once: one is needed")
        self.estimator = estimator
        self.columns: tuple[Column, ...] = ()
        names = getattr(estimator, "feature_names_in_", None)
        if names is not None:
            if spec is None:
                raise ValueError(f"{name} was fitted to columns with names: pass spec=, that of the data")
            if wrong := [column for column in names if column not in {c.name for c in spec.columns}]:
                raise ValueError(f"{name} needs the columns {some(wrong)}, which the data do not have")
            self.columns, self.names = spec.columns, list(names)

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        rows: Any = x.detach().cpu().flatten(1).double().numpy()
        if self.columns:
            import pandas

            frame = decode(x.detach().cpu(), self.columns)
            rows = pandas.DataFrame({name: frame[name].to_numpy() for name in self.names})
        with np.errstate(divide="ignore"):
            try:
                known = hasattr(self.estimator, "predict_log_proba")
                scores = self.estimator.predict_log_proba(rows) if known else np.log(self.estimator.predict_proba(rows))
            except ValueError as error:
                raise ValueError(
                    f"{type(self.estimator).__name__} does not fit the data: {first_line(error)}"
                ) from error
        return torch.from_numpy(np.asarray(scores)).to(x.device, dtype)


def load_images(path: Path, spec: DataSpec | None, *, outputs: str | None = None) -> Run:
    """Read a classifier of images of transformers from a local folder, with the preprocessing that is beside it.

    Raises ValueError where the data are no images with labels, and where the classes differ.
    """
    from transformers import AutoModelForImageClassification

    if spec is None or spec.kind != "image":
        what = "no data" if spec is None else spec.describe()
        raise ValueError(f"{path}: a classifier of images needs images with labels, got {what}")
    model = load_pretrained(AutoModelForImageClassification, path)
    names = labels_of(path, int(model.config.num_labels))
    prepare, notes = pixels_of(path, model.config, spec)
    try:
        density = classifier(model, classes=names, spec=spec, outputs=outputs, prepare=prepare)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    density.notes = (*density.notes, *notes)
    return Run(density, spec, {})
