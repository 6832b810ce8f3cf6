"""Read files that somebody may have written or changed: YAML, and content checked by a model.

Every message names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fitspace.core.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

LARGEST = 1_000_000  # bytes of a YAML file
MOST_MERGED = 1_000

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80
_brief.maxlevel = 2


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys (YAML forbids them, PyYAML keeps the last).

    It also refuses merges (``<<``) that multiply: nine short lines of them can fill the memory.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merged = [len(v.value) for k, v in node.value if k.tag == "tag:yaml.org,2002:merge"]
        if sum(merged) <= MOST_MERGED:  # one line can name a mapping many times
            super().flatten_mapping(node)
        if merged and max(sum(merged), len(node.value)) > MOST_MERGED:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: merges more than {MOST_MERGED} keys or mappings")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # For a tag that does not fit its value, such as `!!int x`, PyYAML raises any of these.
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {short(node.value)} is no {kind}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {short(node.value)} is no mapping")
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, str):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.YAMLError(f"line {line}: the key {key!r} stands twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str = "a study file") -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError if it is missing or not ``what``."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; expected {what} (YAML)")
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path}: {size} bytes; allowed: at most {LARGEST}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what} (YAML)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not valid YAML: {detail}") from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path}: holds {kind}; expected {what}, a mapping")
    return content


def checked(content: Any, model: type[Model], where: Any, what: str) -> Model:
    """Validate content that somebody may have changed, by its model.

    Raises UserError with every reason why the content at ``where`` is not ``what``.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = explain(error, model)
        raise UserError(f"{where}: not {what} ({problem})" for problem in problems) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A pydantic error as at most a hundred messages: key, value, what is allowed."""
    found = error.errors(include_url=False)
    more = [f"and {len(found) - 100} more"] if len(found) > 100 else []
    return [_explain_one(e, model) for e in found[:100]] + more


def _explain_one(item: dict[str, Any], model: type[BaseModel]) -> str:
    parts = [p for p in item["loc"] if not _is_union_tag(p)]
    key = _key(parts)
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return f"{key}: missing; this key is required"
    if kind == "extra_forbidden":
        parts = [*(p for p in item["loc"][:-1] if not _is_union_tag(p)), item["loc"][-1]]
        key = _key(parts)
        allowed = sorted(_fields_at(model, parts[:-1]))
        near = difflib.get_close_matches(str(parts[-1]), allowed, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"{key}: unknown key{hint}; allowed: {', '.join(allowed)}"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    message = message[0].lower() + message[1:]
    if isinstance(value, str) and kind in ("float_type", "int_type") and _is_number(value):
        number = float(value)
        if kind == "int_type" and number.is_integer():
            number = int(number)
        message += f" (YAML reads {value} as text; write {number!r})"
    return f"{key}: {short(value)}: {message}"


def _key(parts: list[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")


def _is_union_tag(part: str | int) -> bool:
    # pydantic's location also names the branch of a union, which is no key of the file.
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool", "constrained-str") or "[" in part
    )


def _fields_at(model: type[BaseModel], parts: list[str | int]) -> list[str]:
    """The keys allowed at a location of a model."""
    for part in parts:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def short(value: Any) -> str:
    """A value for a message: its repr, of limited length."""
    try:
        return _brief.repr(value)
    except ValueError:  # an integer of thousands of digits has no decimal text
        return f"a {type(value).__name__} too long to show"


class Recorded(BaseModel):
    """Content that fitspace wrote and somebody may have changed since."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def names_a_file(path: str) -> str:
    """The path, if its last part can be a file's name; else raises ValueError."""
    name = Path(path).name
    if name in ("", "..") or "\0" in path or len(name.encode()) > 255:
        raise ValueError(f"{path[:80]!r} names no file")
    return path
