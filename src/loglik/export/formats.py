"""The files of a traced program: ONNX, which onnxruntime runs, and torch.export's own format."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from loglik.data.limits import first_line
from loglik.export.decompositions import DECOMPOSITIONS
from loglik.files import naming, replacing

__all__ = ["FORMATS", "read", "require", "write"]

FORMATS = {"onnx": ".onnx", "torch.export": ".pt2"}
METADATA = "loglik.json"  # in the archive of torch.export

Program = Callable[[Mapping[str, Tensor]], Tensor]


def require(to: str) -> None:
    """Raise ImportError if a format's packages are not installed, and ValueError for an unknown format."""
    if to not in FORMATS:
        raise ValueError(f"unknown format {to!r}: use {' or '.join(FORMATS)}")
    if to == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(f"to=onnx needs {error.name}: pip install 'loglik[onnx]'") from error


def write(program: torch.export.ExportedProgram, path: Path, to: str, metadata: Mapping[str, str]) -> None:
    """Write a program as a file of a format, with metadata. Raises ValueError for what the format does not have."""
    with replacing(path) as temporary, _quiet():
        if to == "torch.export":
            with naming(path):
                archive = temporary.with_name(temporary.name + FORMATS[to])  # torch looks at the suffix
                torch.export.save(program, archive, extra_files={METADATA: json.dumps(dict(metadata))})
                archive.replace(temporary)
            return
        try:
            model = torch.onnx.export(
                program.run_decompositions(DECOMPOSITIONS), (), dynamo=True, verbose=False, optimize=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"ONNX cannot express this density: {_cause(error)}") from error
        assert model is not None
        model.model.metadata_props.update(metadata)
        model.save(temporary)


def read(path: Path, to: str) -> tuple[Program, dict[str, str]]:
    """Return the program of a file as a function of named inputs, and its metadata."""
    if to == "torch.export":
        extra = {METADATA: ""}
        module = torch.export.load(path, extra_files=extra).module()
        return lambda inputs: module(**inputs), json.loads(extra[METADATA])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of onnxruntime's own, one for each cause
        raise ValueError(f"onnxruntime cannot run {path.name}: {first_line(error)}") from error

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about itself from the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
