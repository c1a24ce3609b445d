"""The JSON Schema of a settings file, made from the fields: for editors, and for checks without fenhe."""

from pathlib import Path
from typing import Any

import msgspec

from server.settings.config import ServerConfig, StudentConfig
from server.settings.fields import Field, find_fields, find_sections
from server.settings.help import describe

Schema = dict[str, Any]


def settings_schema() -> Schema:
    """Some rules are not in it: settings that contradict each other, files that must exist."""
    root = _tree(ServerConfig, "The settings of `fenhe serve`.")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root}


def _tree(kind: type[Any], about: str) -> Schema:
    """The settings of a dataclass and of its sections."""
    sections = {name: _object([], said) for name, said in find_sections(kind).items()}
    fields = find_fields(kind)
    root = _object([one for one in fields if not one.section], about)
    for one in fields:
        if one.section:
            sections[one.section]["properties"][_last(one)] = _schema_of(one)
    root["properties"] |= sections
    return root


def _object(fields: list[Field], about: str) -> Schema:
    properties = {_last(one): _schema_of(one) for one in fields}
    return {"description": about, "type": "object", "properties": properties, "additionalProperties": False}


def _last(setting: Field) -> str:
    return setting.name.rpartition(".")[2]


def _schema_of(setting: Field) -> Schema:
    about = describe(setting)
    if setting.kind == tuple[StudentConfig, ...]:
        table = _tree(StudentConfig, "A student.")
        return {"description": about, "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": table}]}
    schema = msgspec.json.schema(setting.hint, schema_hook=_schema_of_path)
    schema.pop("description")
    if "anyOf" in schema:  # a file has no null: what is not set is left out
        (schema,) = [one for one in schema["anyOf"] if one != {"type": "null"}]
    default = {} if setting.unset is not None else {"default": setting.default}
    return {"description": about, **schema, **default}


def _schema_of_path(kind: type) -> Schema:
    """Raises: NotImplementedError, as msgspec wants it, for other types."""
    if kind is Path:
        return {"type": "string"}
    raise NotImplementedError
