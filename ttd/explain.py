"""What a configuration may hold and what is wrong with one, in words: types, mistakes and the text of ``--help``."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

EXPECTED = {"a valid dictionary or object to extract fields from": "a section with keys", "a valid dictionary": "keys"}
"""pydantic's words, and those of someone who writes YAML."""


def _members(kind: Any) -> list[Any]:
    """The alternatives of a type, without what only annotates them."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for arg in typing.get_args(kind) for member in _members(arg)]
    return [kind]


def _sections(kind: Any) -> list[type[BaseModel]]:
    """The configurations that a field holds, itself or in a list or by name."""
    found = []
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, BaseModel):
            found.append(member)
        else:
            found += [section for arg in typing.get_args(member) for section in _sections(arg)]
    return found


def _name(section: type[BaseModel]) -> str:
    field = section.model_fields.get("name")
    return str(field.default) if field else section.__name__


def describe_type(kind: Any) -> str:
    """A type as one would say it: ``list[S3Source | OSFSource]``, without modules and annotations."""
    members = _members(kind)
    if len(members) > 1:
        return " | ".join(dict.fromkeys(describe_type(member) for member in members))
    (kind,) = members
    if kind in (type(None), Ellipsis):
        return "None" if kind is not Ellipsis else "..."
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if args:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(map(describe_type, args))}]"
    return getattr(kind, "__name__", str(kind))


def _follow(schema: type[BaseModel], path: Sequence[Any]) -> tuple[list[str], list[type[BaseModel]]]:
    """``path`` as a user writes it, without the names of alternatives that pydantic puts in, and the sections there."""
    written: list[str] = []
    kinds: list[Any] = [schema]
    for part in path:
        members = [member for kind in kinds for member in _members(kind)]
        sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        chosen = [s for s in sections if part in (_name(s), s.__name__)]
        holding = [s for s in sections if part in s.model_fields]
        inside = [typing.get_args(m)[-1] for m in members if typing.get_origin(m) in (dict, list)]
        inside += [a for m in members if typing.get_origin(m) is tuple for a in typing.get_args(m) if a is not Ellipsis]
        if len(sections) > 1 and chosen:
            kinds = [chosen[0]]
            continue
        written.append(str(part))
        kinds = [s.model_fields[part].annotation for s in holding] if holding else inside
    return written, [section for kind in kinds for section in _sections(kind)]


def _shown(value: Any) -> str:
    """A value in a few words; nothing for whole sections."""
    if isinstance(value, dict | BaseModel):
        return ""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + " …"


def _guess(value: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'see --help'}"


def _remedy(kind: str, value: Any, *, in_list: bool) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return f'; quote it: ["{value}"]' if in_list else f'; quote it: "{value}"'
    if kind in ("tuple_type", "list_type") and not isinstance(value, dict):
        return "; write a list: [one, another]"
    return ""


def explain(error: ValidationError | Sequence[Any], schema: type[BaseModel]) -> list[str]:
    """Every mistake of a configuration, or those given, in one sentence each: dotted path, value, remedy."""
    lines = []
    for mistake in error.errors() if isinstance(error, ValidationError) else error:
        kind, loc, value = mistake["type"], mistake["loc"], mistake["input"]
        extra = kind == "extra_forbidden"
        written, sections = _follow(schema, loc[:-1] if extra else loc)
        path = ".".join([*written, str(loc[-1])] if extra else written) or "the configuration"
        if extra:
            known = list(dict.fromkeys(name for section in sections for name in section.model_fields))
            given = f" (value {_shown(value)})" if _shown(value) else ""
            lines.append(f"{path}: unknown key{given}; {_guess(loc[-1], known)}")
        elif kind == "missing":
            lines.append(f"{path}: must be given; write it in the YAML file or as {path}=VALUE on the command line")
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            known, tag = [_name(section) for section in sections], mistake.get("ctx", {}).get("tag")
            which = "must be given" if tag is None else f"there is no {tag!r}"
            near = difflib.get_close_matches(str(tag), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"{path}.name: {which}{hint} (known here: {', '.join(known)})")
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            for words, plain in EXPECTED.items():
                message = message.replace(words, plain)
            remedy = _remedy(kind, value, in_list=bool(loc) and isinstance(loc[-1], int))
            lines.append(f"{path}: {message}" + (f", got {_shown(value)}" if _shown(value) else "") + remedy)
    return list(dict.fromkeys(lines))


def describe_fields(schema: type[BaseModel], indent: str = "  ") -> list[str]:
    """The configuration tree as text: key, type, default, meaning."""
    lines = []
    for name, info in schema.model_fields.items():
        sections, kind = _sections(info.annotation), describe_type(info.annotation)
        doc = " ".join((info.description or "").split())
        if len(sections) == 1:
            lines.append(f"{indent}{name}:" + (f"  {doc}" if doc else ""))
            lines += describe_fields(sections[0], indent + "  ")
        elif sections:
            lines.append(f"{indent}{name}: {kind}, one of, by its name:" + (f" {doc}" if doc else ""))
            for section in sections:
                lines.append(f"{indent}  - {_name(section)}")
                lines += describe_fields(section, indent + "      ")
        else:
            default = "required" if info.is_required() else f"default {info.get_default(call_default_factory=True)}"
            lines.append(f"{indent}{name}: {kind} ({default})" + (f"  {doc}" if doc else ""))
    return lines
