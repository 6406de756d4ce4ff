"""Say in one sentence what is wrong with a configuration, in words that need no Python.

msgspec finds the mistake and states it in its own terms; here it gets the key's whole path, the
names that are known there, and words for types. Values are not repeated, because one may have come
from an environment variable that holds a secret; only words where a choice was expected are.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from corpusgen import config as model

_PLACE = re.compile(r"^(?P<problem>.*?) - at (?:`(?P<key>key)` in )?`\$(?P<at>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$")
_INVALID = re.compile(r"^Invalid (?:enum )?value (.*)$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `([^`]*)`(.*)$", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[]+)|(\[[^\]]*\])")
_GOT = re.compile(r", got `(.*)`")
_BOUND = re.compile(r" (of length )?(>=|<=|>|<) ([0-9.]+)")
_REGEX = re.compile(r" matching regex '(.*)'$")

_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "empty",
}
_GIVEN = {**_WORDS, "float": "a number with a fraction", "bool": "true or false"}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def _pattern(kind: Any) -> str:
    """Return a type's regular expression as it stands in a message: escaped like a literal."""
    return next(repr(m.pattern)[1:-1] for m in get_args(kind) if isinstance(m, msgspec.Meta))


_PATTERNS = {
    _pattern(model.Name): "a name of letters, digits, '.', '_' and '-' that begins with a letter "
    "or digit",
    _pattern(get_args(model.Money)[0]): "an amount of dollars, such as 0.15",
}


class _Place(NamedTuple):
    """A place in the configuration: its path for people, what may stand there, what does."""

    path: str
    kind: Any
    node: Any


def explain(message: str, tree: Any) -> str:
    """Return msgspec's message about a tree of plain values as a sentence for people."""
    found = _PLACE.match(message)
    problem = found["problem"] if found else message
    place = _locate(found["at"] if found else "", tree)
    if found and found["key"]:
        return _explain_key(problem, place)
    if unknown := _UNKNOWN.match(problem):
        return _explain_unknown(unknown[1], place)
    if missing := _MISSING.match(problem):
        return f"{_join(place.path, missing[1])} is missing; set it{_choices(place, missing[1])}."
    name = place.path or "the file"
    if invalid := _INVALID.match(problem):
        one_of = ", ".join(_options(place.kind) or sorted(_tags(model.TeacherConfig)))
        return f"{name}: {invalid[1]} is not known; use one of {one_of}."
    if expected := _EXPECTED.match(problem):
        return f"{name} must be {_requirement(expected[1], expected[2])}."
    return f"{name}: {problem[0].lower()}{problem[1:]}."


def _explain_key(problem: str, place: _Place) -> str:
    """Explain a key that cannot be one: not text, or not the name that it has to be."""
    name = place.path or "the file"
    mappings = [k for k in _alternatives(place.kind) if get_origin(k) is dict]
    kind = get_args(mappings[0])[0] if mappings else str
    odd = next((key for key in place.node if not _converts(key, kind)), None)
    expected = _EXPECTED.match(problem)
    words = _requirement(expected[1], _GOT.sub("", expected[2])) if expected else "text"
    return f"{name}: the key {odd!r} must be {words}."


def _explain_unknown(key: str, place: _Place) -> str:
    known = _known(place)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"Known keys here: {', '.join(known)}."
    return f"unknown key {_join(place.path, key)}. {hint}"


def _requirement(types: str, rest: str) -> str:
    """Return what must stand somewhere, and what does."""
    words = " or ".join(_WORDS.get(t, t) for t in types.split(" | ") if t != "null")
    if got := _GOT.search(rest):
        return f"{words}, but it is {_GIVEN.get(got[1], 'a ' + got[1])}"
    if regex := _REGEX.search(rest):
        return _PATTERNS.get(regex[1], f"text that matches {regex[1]}")
    if bound := _BOUND.search(rest):
        size = f"{_BOUNDS[bound[2]]} {bound[3].removesuffix('.0')}"
        many = "characters" if types == "str" else "entries"
        unit = "entry" if bound[3] == "1" else many
        return f"{words} with {size} {unit}" if bound[1] else f"{words} of {size}"
    return words


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _choices(place: _Place, key: str) -> str:
    """Return the words that a missing key may hold, where they are few."""
    tagged = key == "kind" and len(_structs(place.kind)) > 1
    return f" to one of {', '.join(sorted(_tags(place.kind)))}" if tagged else ""


def _locate(at: str, tree: Any) -> _Place:
    """Follow a path of msgspec's through the configuration's types and the tree.

    msgspec writes `[...]` for any value of a mapping; the one that is meant is the first that
    fails by itself.
    """
    path, kind, node = "", model.Config, tree
    for step in _STEP.finditer(at):
        if step[1] is not None:
            path, kind = _join(path, step[1]), _member(kind, node, step[1])
            node = node.get(step[1]) if isinstance(node, dict) else None
        elif isinstance(node, dict):
            kind = _inner(kind)
            key = next((key for key in node if not _converts(node[key], kind)), None)
            path, node = _join(path, str(key)), node.get(key)
        else:
            kind, node = _inner(kind), node[int(step[2][1:-1])] if isinstance(node, list) else None
            path += step[2]
    return _Place(path, kind, node)


def _converts(node: Any, kind: Any) -> bool:
    try:
        msgspec.convert(node, Any if kind is None else kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def _member(kind: Any, node: Any, step: str) -> Any:
    struct = _struct(kind, node)
    return None if struct is None else get_type_hints(struct, include_extras=True).get(step)


def _inner(kind: Any) -> Any:
    containers = [k for k in _alternatives(kind) if get_origin(k) in (list, dict)]
    return get_args(containers[0])[-1] if containers else None


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, without their annotations."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        return tuple(k for member in get_args(kind) for k in _alternatives(member))
    return (kind,)


def _options(kind: Any) -> list[str]:
    """Return the words that may stand where a choice is expected."""
    words: list[str] = []
    for member in _alternatives(kind):
        if member is bool:
            words += ["true", "false"]
        elif get_origin(member) is Literal:
            words += [str(word) for word in get_args(member)]
    return words


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    members = _alternatives(kind)
    return [m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct)]


def _struct(kind: Any, node: Any) -> type[msgspec.Struct] | None:
    structs = _structs(kind)
    if len(structs) > 1 and isinstance(node, dict):
        structs = [s for s in structs if s.__struct_config__.tag == node.get("kind")]
    return structs[0] if structs else None


def _known(place: _Place) -> list[str]:
    struct = _struct(place.kind, place.node)
    if struct is None:
        return []
    tag = struct.__struct_config__.tag_field
    return [*([tag] if tag else []), *struct.__struct_fields__]


def _tags(kind: Any) -> list[str]:
    return [str(struct.__struct_config__.tag) for struct in _structs(kind)]
