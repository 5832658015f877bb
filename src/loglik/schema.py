"""The schema of a run's config.yaml: what a file may hold is checked before anything is built from it.

A run may come from a stranger. So the text is limited in size and depth, it has no aliases (a few lines of them stand
for gigabytes) and no tags, an unknown key is an error, and each number has bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from loglik.data.catalogue import names
from loglik.data.image_settings import ImageSettings
from loglik.data.limits import first_line, quote, shorten
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings

__all__ = ["FORMAT", "Config", "check", "dump", "parse"]

FORMAT = 1  # of a run's folder; a format that an older loglik cannot read gets a higher number
MAX_BYTES = 2**23  # of a config.yaml
MAX_NODES = 100_000  # a second's reading
MAX_DEPTH = 16  # of its lists and mappings
MAX_DIMS = 2**24  # of an event
MAX_TOKEN_BYTES = 2**26  # of all tokens of a tokenizer

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Positive = Annotated[int, Meta(ge=1, le=2**31)]
Scalar = str | int | float | bool | None
Text = Annotated[str, Meta(max_length=2**16)]


class _Plain(Dumper):
    """Writes a list twice where it occurs twice, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Column(Struct, forbid_unknown_fields=True):
    name: Text
    type: Literal["numeric", "integer", "categorical", "boolean"]
    categories: list[Text]
    missing: bool = False
    temporal: Literal["", "date", "datetime", "time", "duration"] = ""
    unit: Literal["", "1d", "1h", "1m", "1s", "1ms", "1us"] = ""
    origin: Annotated[str, Meta(max_length=64)] = ""
    zone: Annotated[str, Meta(max_length=64)] = ""
    decimals: Annotated[int, Meta(ge=0, le=7)] | None = None
    written: Annotated[str, Meta(max_length=64)] = ""
    indicates: Text = ""
    novelty: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    low: float | None = None
    high: float | None = None


class _Bytes(Struct, forbid_unknown_fields=True, tag="bytes", tag_field="kind"):
    @property
    def size(self) -> int:
        return 256


class _Characters(Struct, forbid_unknown_fields=True, tag="characters", tag_field="kind"):
    characters: Annotated[str, Meta(min_length=1, max_length=2**16)]

    def __post_init__(self) -> None:
        if list(self.characters) != sorted(set(self.characters)):
            raise ValueError("characters must be distinct, in the order of their code points")

    @property
    def size(self) -> int:
        return len(self.characters)


class _BytePairs(Struct, forbid_unknown_fields=True, tag="bpe", tag_field="kind"):
    merges: str

    @property
    def size(self) -> int:
        return 256 + len(self.merges.split()) // 2

    def __post_init__(self) -> None:
        lengths, words = [1] * 256, self.merges.split()
        total = 256
        if len(words) % 2 or len(words) > 2**17:
            raise ValueError(f"expected at most 65,536 pairs of tokens, got {len(words)} numbers")
        for first, second in zip(words[::2], words[1::2], strict=True):
            if not all(w.isascii() and w.isdigit() and len(w) < 8 and int(w) < len(lengths) for w in (first, second)):
                raise ValueError(f"a merge joins tokens 0 to {len(lengths) - 1}, got {quote(f'{first} {second}')}")
            lengths.append(lengths[int(first)] + lengths[int(second)])
            total += lengths[-1]
            if total > MAX_TOKEN_BYTES:
                raise ValueError(f"the tokens have more than {MAX_TOKEN_BYTES >> 20} MiB of text")


class _Spec(Struct, forbid_unknown_fields=True):
    kind: Literal["image", "table", "array", "text"]
    event_shape: Annotated[list[Positive], Meta(max_length=8)]
    levels: Annotated[int, Meta(ge=1, le=2**24)] | None
    classes: list[Text]
    columns: list[_Column]
    label: Text | None
    tokenizer: _Bytes | _Characters | _BytePairs | None = None
    padded: bool = False
    inputs: list[_Column] = []
    left_out: list[tuple[Text, Text]] = []

    def __post_init__(self) -> None:
        dims = 1
        for size in self.event_shape:
            dims *= size
        if dims > MAX_DIMS:
            raise ValueError(f"an event has at most {MAX_DIMS:,} dimensions, got {dims:,}")
        if self.columns and self.event_shape != [len(self.columns)]:
            raise ValueError(f"{len(self.columns)} columns do not fit events of shape {self.event_shape}")
        ranks = {"image": 3, "table": 1, "text": 1}
        if len(self.event_shape) != ranks.get(self.kind, len(self.event_shape)):
            raise ValueError(f"an event of kind {self.kind} has {ranks[self.kind]} sizes, got {self.event_shape}")
        if self.kind == "text" and self.levels is None:
            raise ValueError("text needs levels, the number of its tokens")
        if self.tokenizer is not None and self.levels != (size := self.tokenizer.size + self.padded):
            raise ValueError(f"levels are {self.levels}, and the tokenizer has {size} tokens")


class _Table(Struct, forbid_unknown_fields=True):
    missing: Literal["model", "refuse", "indicator"]
    columns: dict[Text, Annotated[str, Meta(max_length=64)]]
    unseen: Literal["score", "refuse"]

    def __post_init__(self) -> None:
        TableSettings(missing=self.missing, columns=self.columns, unseen=self.unseen)


class Config(Struct, forbid_unknown_fields=True):
    """What config.yaml holds; `training` has fields of `TrainingSettings`, `options` those of the recipe."""

    format: Literal[1]
    model: Text | None
    options: dict[Text, Scalar]
    data: Text
    source: Text | None
    label: Text | None
    spec: _Spec
    training: dict[Text, Scalar]
    versions: dict[Text, Text]
    text: dict[Text, Scalar] | None = None
    table: _Table | None = None
    images: dict[Text, Scalar] | None = None
    chosen: dict[Text, Scalar] = {}
    cpu: dict[Text, Scalar] = {}
    steps: Annotated[int, Meta(ge=0, le=2**62)] = 0
    train_seconds: Annotated[float, Meta(ge=0, le=1e12)] = 0.0

    def __post_init__(self) -> None:
        seed = self.training.get("seed")
        if type(seed) is not int or seed < 0 or seed >= 2**63:
            raise ValueError(f"training.seed must be an integer of at least 0, got {seed!r:.60}")
        if not isinstance(self.training.get("precision"), str):
            raise ValueError(f"training.precision must be a text, got {self.training.get('precision')!r:.60}")
        _check_settings("text", self.text, TextSettings)
        _check_settings("images", self.images, ImageSettings)
        known = self.source is None or self.source in names() or self.source.startswith("hf:")
        if not known and not Path(self.source or "").is_absolute():
            raise ValueError(f"source must be a name, hf:NAME or an absolute path, got {self.source!r:.60}")


def _check_settings(kind: str, values: dict[str, Any] | None, settings: type[TextSettings | ImageSettings]) -> None:
    """Raise ValueError unless values are settings of this kind of data."""
    if unknown := sorted(set(values or {}) - set(settings.names())):
        known = ", ".join(settings.names())
        raise ValueError(f"{kind} has an unknown key {unknown[0]!r:.60}: it has {known}")
    settings(**values or {})


def parse(text: bytes, where: Path) -> dict[str, Any]:
    """Return the configuration in the text of config.yaml.

    Raises ValueError, in one line that begins with `where`, for a text that is not YAML or not a run's configuration,
    and for a run that a newer version wrote.
    """
    try:
        values = _plain(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
        raise ValueError(f"{where} is not a run's configuration ({first_line(error)})") from error
    version = values.get("format") if isinstance(values, dict) else None
    if type(version) is int and version > FORMAT:
        made = values.get("versions")
        name = made.get("loglik") if isinstance(made, dict) else None
        name = shorten(name, 40) if isinstance(name, str) else "unknown"
        raise ValueError(
            f"{where.parent} was made by a newer loglik ({name}, run format {min(version, 10**9)}; this version reads "
            f"up to {FORMAT}): upgrade loglik to read it"
        )
    check(values, where)
    return values


def check(values: Any, where: Path) -> None:
    """Raise ValueError, in one line that begins with `where`, unless plain values are a run's configuration."""
    try:
        msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        key = path.rstrip("`").removeprefix("$").removeprefix(".")
        message = message.replace("`", "'").replace("Object missing", "it lacks the").replace("Object ", "it ")
        at = f" at {key}" if key else ""
        raise ValueError(f"{where} is not a run's configuration{at}: {shorten(message, 300)}") from error


def dump(values: dict[str, Any]) -> str:
    """Return a configuration as the text of config.yaml. Raises ValueError if `parse` would refuse its size."""
    text = yaml.dump(values, Dumper=_Plain, sort_keys=False, allow_unicode=True)
    try:
        _plain(text.encode())
    except ValueError as error:
        remedy = "leave out columns of free text and of identifiers"
        raise ValueError(
            f"config.yaml would be too large for the names of columns and classes ({error}): {remedy}"
        ) from error
    return text


def _plain(text: bytes) -> Any:
    """Return the values of a YAML text of one document without aliases and tags."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    decoded, depth = text.decode("utf-8"), 0
    for number, event in enumerate(yaml.parse(decoded, Loader=Loader)):
        if number > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"it has a tag, {tag}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and mappings are nested more than {MAX_DEPTH} deep")
    return yaml.load(decoded, Loader=Loader)
