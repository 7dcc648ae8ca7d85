"""YAML and `key=value` overrides become frozen, strict pydantic models; every mistake is named with its remedy."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from pipeline.errors import ConfigError, shown
from pipeline.plain_yaml import LONGEST, read_yaml


class StrictModel(BaseModel):
    """A configuration section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ClusterConfig(StrictModel):
    """Where the work runs and how fast. Never part of a fingerprint: it must not change results beyond rounding."""

    address: str = "local"
    """Which Ray runs the work: `local` starts one on this machine, `auto` or `HOST:PORT` is a running cluster. The
    option --address goes before it."""
    ship_code: bool = False
    """Send this checkout to the cluster's nodes (Ray's working_dir, without what .gitignore names). Default: they find
    it at the same path, or in their image. Their Python environment must be there either way."""
    num_workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], int] | None = None
    """Ranks of a training gang, or `[fewest, most]`: the gang then starts with what the cluster has, goes on smaller
    when a node dies, and larger when there is room again; an autoscaling cluster is asked for the most. Default: one
    per GPU, or a single one on CPUs."""
    placement: Literal["spread", "pack"] = "spread"
    """`spread`: ranks and unit workers go to as many nodes as there are. `pack`: to as few as hold them, for gangs
    whose network is slow."""
    start_timeout: float = Field(300, gt=0)
    """Seconds that a gang waits for room for its ranks, or its fewest, before the stage fails; and that workers which
    have made no step or unit yet may be silent beyond `hang_timeout`: loading libraries can stop a process whole."""
    hang_timeout: float = Field(60, ge=2)
    """Seconds without a sign of life after which a worker counts as dead: stopped, swapped out, or cut off. A busy
    worker answers from a thread of its own, so a long compilation or batch is no silence."""
    stall_timeout: float = Field(1800, ge=10)
    """Seconds without a step after which a gang whose ranks all answer is started again: a deadlock. Counted from the
    second step on, because the first ones compile."""
    unit_workers: int | None = Field(None, ge=1)
    """Processes that map over units (shard, encode, sample, features). Default: one per CPU core, or per GPU."""
    threads: int | None = Field(None, ge=1)
    """Threads of one training rank on CPUs. Default: the machine's cores divided by the ranks on it."""
    loader_workers: int = Field(0, ge=0)
    """Processes that decode pictures for one training rank. 0 decodes in the rank itself, right for small pictures."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Pictures a rank sends through the network at once; gradients add up over them. Default: its whole slice of the
    batch. `auto`: the largest of its whole, half, quarter and so on that fits into the GPU, found by trying."""
    activation_checkpointing: bool = False
    """Compute the inside of the networks' blocks again in the backward pass instead of keeping it: less memory for
    about a third more time."""
    compile: bool | None = None
    """Compile the networks with torch.compile. Default: on GPUs, where it is worth its minutes."""
    checkpoint_every: int = Field(100, ge=1)
    """Training steps between checkpoints: the most work that a death can cost."""
    max_failures: int = Field(3, ge=0)
    """How often in a row a unit, or a gang that gets no further, may die before the stage fails. The death of a node
    is no unit's fault and does not count for it."""

    @field_validator("num_workers")
    @classmethod
    def _fewest_first(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError("of [fewest, most] ranks the fewest come first")
        return value

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The fewest and the most ranks of a gang; None: as many as there are GPUs."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers


class TrackingConfig(StrictModel):
    """Where MLflow keeps runs. Never part of a fingerprint."""

    uri: str | None = None
    """An MLflow tracking server's URI. Default: SQLite inside a local workdir."""
    experiment: str = "smalti"
    """Name of the MLflow experiment."""
    model: str = "smalti"
    """Name of the registered model whose versions are those that are published."""


Model = TypeVar("Model", bound=BaseModel)

MOST_MISTAKES = 20
"""Of a file that are named at once."""
SMOKE = "smoke"
"""The section of a file that only a smoke run reads."""


def load_config(model: type[Model], path: Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> Model:
    """Read a YAML file, apply `section.key=value` overrides and validate.

    With `smoke` the file's section of that name, the same experiment made tiny, is laid over the rest before.
    Raises ConfigError naming file, key, value and remedy.
    """
    try:
        with path.open("rb") as file:
            tree = read_yaml(file.read(LONGEST + 1))
    except FileNotFoundError:
        raise ConfigError(f"config {path} does not exist: name one with --config, e.g. configs/emoji.yaml") from None
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read ({error.strerror}): name another with --config") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"config {path} is not readable YAML: {error}") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"config {path} must be a mapping of sections, not {type(tree).__name__}")
    tree = tree or {}
    tiny = tree.pop(SMOKE, None)
    if smoke:
        if not isinstance(tiny, dict):
            raise ConfigError(f"config {path} has no section {SMOKE}: write one, with the keys that make it tiny")
        tree = _laid_over(tree, tiny)
    for override in overrides:
        _apply(tree, override)
    return validate(model, tree, f"{path} with {' '.join(overrides)}" if overrides else str(path))


def validate(model: type[Model], tree: Mapping[str, Any], origin: str) -> Model:
    """Validate a plain tree against a model. Raises ConfigError with one line for each mistake."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()[:MOST_MISTAKES]]
        more = error.error_count() - len(lines)
        lines += [f"  and {more} more mistakes"] if more else []
        raise ConfigError("\n".join([f"{origin}:", *lines])) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a nested mapping into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def strings_in(value: Any) -> Iterator[str]:
    """Yield all strings in a tree of mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for below in value.values():
            yield from strings_in(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from strings_in(below)


def _laid_over(tree: Any, over: Any) -> Any:
    """`tree` with the keys of `over`, section by section; a value, or a section of another `kind`, replaces all."""
    if not (isinstance(tree, Mapping) and isinstance(over, Mapping)):
        return over
    if over.get("kind", tree.get("kind")) != tree.get("kind"):
        return over
    return {**tree, **{key: _laid_over(tree.get(key), value) for key, value in over.items()}}


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form section.key=value, e.g. prior.learning_rate=3e-4")
    *parents, last = key.strip().split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        tree = child
    try:
        tree[last] = read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {override!r}: the value is not readable YAML: {error}") from None


def _explain(model: type[BaseModel], item: Any) -> str:
    keys, sections = _follow(model, item["loc"])
    location = ".".join(keys)
    if item["type"] == "extra_forbidden":
        known = [name for section in sections for name in section.model_fields]
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"  {location}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"  {location}: missing; set it in the file or with {location}=VALUE"
    if item["type"] == "union_tag_not_found":
        tag = item["ctx"]["discriminator"].strip("'")
        kinds = [str(section.model_fields[tag].default) for section in sections]
        return f"  {location}: which one? Set {location}.{tag} as well, to one of {', '.join(kinds)}"
    message = item["msg"].removeprefix("Value error, ")
    secret = any(_holds_a_secret(section, keys[-1]) for section in sections) if keys else False
    return f"  {location or 'config'}: {message}" + (
        f" (got {shown(item['input'])})" if location and not secret else ""
    )


def _holds_a_secret(section: type[BaseModel], key: str) -> bool:
    """Whether a value must not be repeated, not even where it is wrong."""
    annotation = section.model_fields[key].annotation if key in section.model_fields else None
    return SecretStr in (annotation, *typing.get_args(annotation))


def _follow(model: type[BaseModel], path: tuple[str | int, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """Return the keys of `path` as a user writes them, and the sections that its last key may stand for or lie in.

    pydantic names the chosen member of a tagged union in the path too: that is no key.
    """
    keys: list[str] = []
    sections = [model]
    for part in map(str, path):
        chosen = [s for s in sections if any(field.default == part for field in s.model_fields.values())]
        if keys and chosen and not any(part in section.model_fields for section in sections):
            sections = chosen
            continue
        keys.append(part)
        annotations = [s.model_fields[part].annotation for s in sections if part in s.model_fields]
        sections = [found for annotation in annotations for found in _sections_in(annotation)] or sections
    return keys, sections


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a value of this type may be or hold: those of unions, tuples and optional values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)
