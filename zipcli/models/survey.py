"""What there is to say of models: which we know, which are here, and what is in one."""

from dataclasses import asdict
from typing import Any

from zipcli.errors import ModelError
from zipcli.models.catalog import CATALOG, HubName, parse_name
from zipcli.models.records import pulled_names
from zipcli.models.store import ModelFiles, converted_copy, find_cached


def list_models() -> list[dict[str, Any]]:
    """Every model of the catalog, and every other that was pulled, as JSON can hold it. No torch."""
    return [describe_name(name) for name in [*CATALOG, *pulled_names()]]


def describe_name(name: str) -> dict[str, Any]:
    """What is known of a model without opening it."""
    meaning = parse_name(name)
    known = CATALOG.get(meaning) if isinstance(meaning, str) else None
    places = known.places if known else (meaning,) if isinstance(meaning, HubName) else ()
    place = places[0] if places else None
    try:
        files = find_cached(name)
    except ModelError:
        files = None  # it is here, and `zipcli models verify` says what is wrong with it
    unknown = "see its page" if place else "unknown"
    return {
        "name": name,
        "cached": files is not None,
        "repository": place.repository if place else None,
        "revision": place.revision if place else None,
        "file": place.file or None if place else None,
        "size": known.size if known else None,
        "sha256": known.sha256 if known else files.sha256.get("weights") if files else None,
        "licence": known.licence if known else unknown,
        "data": known.data if known else unknown,
        "path": str(files.weights) if files else None,
    }


def describe_model(files: ModelFiles) -> dict[str, Any]:
    """What is in the files of a model; its weights are not read, but they must fit their network."""
    from zipcli.models.design import open_model

    ready = converted_copy(files)
    if ready is None:
        raise ModelError(
            f"{files.name}: its pickle is not converted yet; run `zipcli models pull {files.name}`"
        )
    digests = ready.verify()
    with open_model(ready) as (_, design):
        parameters = sum(parameter.numel() for parameter in design.build().parameters())
    return {
        "layout": design.layout,
        "parameters": parameters,
        "network": asdict(design.network),
        "schedule": asdict(design.schedule) if design.schedule is not None else {},
        "card": dict(design.card),
        "notes": list(design.notes),
        "weights_sha256": digests["weights"],
        "paths": {role: str(path) for role, path in ready.paths.items()},
    }
