"""The model card of a published bundle (Mitchell et al. 2019, "Model Cards for Model Reporting"): its README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.config import flatten
from pipeline.redaction import redacted
from stages.metrics.report.numbers import number
from stages.models.pretrained import CONFIG, WEIGHTS
from stages.publishing.card_figures import Compared, listed
from stages.publishing.markdown import plain
from stages.publishing.serving import serving_description
from stages.sampling.bundle import PRIOR, TOKENIZER, Parts

TEMPLATE = "card.md.j2"
NAMED = 40
"""Classes that the card lists."""


def model_card(
    inputs: Mapping[str, Artifact], parts: Parts, decision: Mapping[str, Any], hashes: Mapping[str, str]
) -> str:
    """Return the card in Markdown: what the model is, learnt from, can do and cannot, and how it was made.

    `hashes` are the sha256 of the bundle's other files by name.
    """
    import jinja2

    room = jinja2.Environment(  # Markdown: names from outside go through `plain`, there is no HTML to escape
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    room.filters |= {"plain": plain, "number": number}
    report, dataset = inputs["evaluation"].read_json("report.json"), inputs["shards"].read_json("dataset.json")
    prior, classes = parts.description, list(parts.description.classes)
    text = room.get_template(TEMPLATE).render(
        verdict=report["verdict"],
        findings=report["findings"],
        compared=Compared.of(report["figures"]),
        others=listed(report["figures"]),
        decision=decision,
        rules=[_rule(rule) for rule in decision.get("rules", ())],
        prior=prior,
        kinds=[kind for kind in prior.kinds if kind != "none"],
        classes=classes[:NAMED],
        classes_left=max(len(classes) - NAMED, 0),
        networks=[_network(name, inputs[name]) for name in (TOKENIZER, PRIOR, "cond_tokenizer") if name in inputs],
        dataset=dataset,
        shards=inputs["shards"].digest,
        source=_source(inputs["shards"].recipe["config"].get("source", {})),
        drawing=_settings(inputs["samples"]),
        example=serving_description(prior)["example"],
        lineage=[_origin(name, artifact) for name, artifact in inputs.items()],
        hashes=hashes,
    )
    return redacted(text)


def num_weights(path: Path) -> int:
    """Count the numbers in a safetensors file by its header alone."""
    from safetensors import safe_open

    total = 0
    with safe_open(path, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # it is no mapping
            count = 1
            for side in tensors.get_slice(name).get_shape():
                count *= side
            total += count
    return total


def _network(name: str, artifact: Artifact) -> dict[str, Any]:
    with artifact.held(WEIGHTS) as path:
        weights, size = num_weights(path), path.stat().st_size
    model = flatten(artifact.read_json(CONFIG)["model"])
    return {"name": name, "weights": weights, "megabytes": size / 1e6, "config": _written(model)}


def _settings(samples: Artifact) -> list[tuple[str, str]]:
    """How the judged samples were drawn."""
    names = ("temperature", "top_k", "top_p", "guidance", "guidance_schedule", "precision", "seed")
    config = samples.recipe["config"]
    given = {name: config[name] for name in names if config.get(name) is not None}
    return _written(given | ({"select": config["select"]["kind"]} if config.get("select") else {}))


def _written(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys and values of a configuration, without what is not set."""
    return [(key, plain(value)) for key, value in sorted(tree.items()) if value is not None]


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {**rule, "reason": plain(rule["reason"])}


def _source(source: Mapping[str, Any]) -> str:
    """The source without the machine's folders, which are nobody's business elsewhere."""
    kind, place = source.get("kind", "unknown"), source.get("path")
    return f"{kind} `{plain(Path(str(place)).name)}`" if place else str(kind)


def _origin(name: str, artifact: Artifact) -> dict[str, str]:
    notes: Mapping[str, Any] = artifact.notes
    found: Iterable[tuple[str, Any]] = ((key, notes.get(key)) for key in ("code", "finished", "machine"))
    return {"name": name, "digest": artifact.digest} | {key: plain(value or "unknown") for key, value in found}
