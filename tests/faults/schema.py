"""The part of JSON Schema that zipcli/cli/schema.json uses, and nothing more."""

import json
import re
from pathlib import Path
from typing import Any

import zipcli

SCHEMA = json.loads((Path(zipcli.__file__).parent / "cli" / "schema.json").read_text())
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "boolean": bool,
    "integer": int,
}
KNOWN = {
    "type", "required", "properties", "additionalProperties", "items", "minItems", "maxItems",
    "enum", "const", "pattern", "minimum", "maximum", "description",
}  # fmt: skip


def faults_of(value: Any, schema: dict[str, Any], where: str = "line") -> list[str]:
    """What is wrong with a value; a property that the schema does not name is wrong as well."""
    assert schema.keys() <= KNOWN, f"{where}: a keyword that this validator does not know"
    if "const" in schema:
        return [] if value == schema["const"] else [f"{where}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is not one of the enum"]
    is_type = isinstance(value, TYPES[schema["type"]]) and (schema["type"] == "boolean") == isinstance(
        value, bool
    )
    if not is_type:
        return [f"{where}: {value!r} is no {schema['type']}"]
    found = []
    if schema["type"] in ("integer", "number"):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            found.append(f"{where}: {value} is out of range")
    elif schema["type"] == "string":
        if not re.search(schema.get("pattern", ""), value):
            found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    elif schema["type"] == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for n, item in enumerate(value):
            found += faults_of(item, schema["items"], f"{where}[{n}]")
    elif schema["type"] == "object":
        found += [f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, inner in value.items():
            rule = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if rule is not None:
                found += faults_of(inner, rule, f"{where}.{name}")
            elif "properties" in schema:
                found.append(f"{where}: {name} is not in the schema")
    return found


def check_line(line: dict[str, Any]) -> None:
    """Fail unless a line is one of the objects that the schema describes."""
    options = {part["$ref"].rpartition("/")[2] for part in SCHEMA["oneOf"]}
    assert options == set(SCHEMA["$defs"])
    assert line.get("type") in options, line
    assert faults_of(line, SCHEMA["$defs"][line["type"]]) == []
