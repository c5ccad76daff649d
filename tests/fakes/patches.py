"""The patches of the Kubernetes API: RFC 7386, RFC 6902, server-side apply; and its selectors. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
# Where a value stands in an object; `[key=value]` is the item of a list whose field `key` has that value.
Place = tuple[str, ...]
_ITEM = re.compile(r"\[(.+?)=(.*)\]")

# Lists that server-side apply merges by this field of their items; it replaces other lists as a whole.
_MERGED_BY = {
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "ownerReferences": "uid",
    "proxies": "pod",
    "volumes": "name",
}

# Maps that server-side apply replaces as a whole.
_ATOMIC_MAPS = ("selector", "matchLabels")


def copy_json(value: Any) -> Any:
    """Return a copy of a value of JSON; several times as fast as copy.deepcopy."""
    if isinstance(value, dict):
        return {key: copy_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [copy_json(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(copy_json(inner) for inner in value)
    return value


def merge_patch(old: Any, patch: Any) -> Any:
    """Return `old` after a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, Mapping):
        return copy_json(patch)
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(body: Json, operations: list[Json]) -> Json | None:
    """Return the object after a JSON patch (RFC 6902); None if it cannot be applied or a test fails.

    As on the real API server, a test for null passes if there is no such member.
    """
    new = copy_json(body)
    for operation in operations:
        *parents, key = (
            token.replace("~1", "/").replace("~0", "~") for token in operation["path"].split("/")[1:]
        )
        parent: Any = new
        for name in parents:
            parent = _member(parent, name)
        applied = (_patch_list if isinstance(parent, list) else _patch_object)(parent, key, operation)
        if not applied:
            return None
    return new


def _member(parent: Any, name: str) -> Any:
    if isinstance(parent, list):
        return parent[int(name)] if name.isdigit() and int(name) < len(parent) else None
    return parent.get(name) if isinstance(parent, dict) else None


def _patch_object(parent: Any, key: str, operation: Json) -> bool:
    """Apply one operation to a member of an object; return False if it cannot be applied."""
    if not isinstance(parent, dict):
        return False
    match operation["op"]:
        case "test":
            return bool(parent.get(key) == operation["value"])
        case "add":
            parent[key] = copy_json(operation["value"])
        case "replace" if key in parent:
            parent[key] = copy_json(operation["value"])
        case "remove" if key in parent:
            del parent[key]
        case _:
            return False
    return True


def _patch_list(parent: list[Any], key: str, operation: Json) -> bool:
    """Apply one operation to an item of a list; return False if it cannot be applied."""
    index = len(parent) if key == "-" else int(key)
    match operation["op"]:
        case "add" if index <= len(parent):
            parent.insert(index, copy_json(operation["value"]))
        case "test" if index < len(parent):
            return bool(parent[index] == operation["value"])
        case "replace" if index < len(parent):
            parent[index] = copy_json(operation["value"])
        case "remove" if index < len(parent):
            del parent[index]
        case _:
            return False
    return True


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield where the values of an applied object stand."""
    if isinstance(value, dict) and value and not (place and _is_atomic(place[-1], value)):
        for key, inner in value.items():
            yield from places(inner, (*place, key))
    elif place and isinstance(value, list) and place[-1] in _MERGED_BY:
        key = _MERGED_BY[place[-1]]
        for item in value:
            yield from places(item, (*place, f"[{key}={item[key]}]"))
    else:
        yield place


def apply_patch(old: Any, applied: Any, name: str = "") -> Any:
    """Return `old` with the values of an applied object; what `applied` leaves out stays."""
    if isinstance(old, dict) and isinstance(applied, Mapping) and not _is_atomic(name, applied):
        return {**old, **{key: apply_patch(old.get(key), value, key) for key, value in applied.items()}}
    key = _MERGED_BY.get(name)
    if key and isinstance(old, list) and isinstance(applied, list):
        by_key = {item[key]: item for item in old}
        return list({**by_key, **{a[key]: apply_patch(by_key.get(a[key]), a) for a in applied}}.values())
    return copy_json(applied)


def _is_atomic(name: str, value: Mapping[str, Any]) -> bool:
    """Return True for a Service's selector and the labels in one of a Deployment, which is itself no such map."""
    return name in _ATOMIC_MAPS and "matchLabels" not in value


def value_at(value: Any, place: Place) -> Any:
    """Return what stands at the place, None if nothing does."""
    for key in place:
        match = _ITEM.fullmatch(key)
        if match:
            items = value if isinstance(value, list) else []
            value = next((item for item in items if str(item.get(match[1])) == match[2]), None)
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def remove(value: Any, place: Place) -> None:
    """Remove what stands at the place, if anything does; an item of a list goes with its last field, the key."""
    key, inner = place[0], place[1:]
    match = _ITEM.fullmatch(key)
    if match and isinstance(value, list):
        for item in [item for item in value if str(item.get(match[1])) == match[2]]:
            if inner != (match[1],):
                remove(item, inner)
            elif len(item) == 1:
                value.remove(item)
    elif isinstance(value, dict) and key in value:
        if inner:
            remove(value[key], inner)
        else:
            del value[key]


def removal_order(place: Place) -> tuple[int, Place]:
    """Sort the key of a list's item behind its other fields, for `remove`."""
    is_key = len(place) > 1 and place[-2].startswith(f"[{place[-1]}=")
    return int(is_key), place


def field_at(body: Any, place: str) -> Any:
    """Return the value at a dotted place, None if there is none."""
    for key in place.split("."):
        body = (body or {}).get(key)
    return body


def is_selected(body: Json, labels: str, fields: str) -> bool:
    """Return True if the object matches a label selector and a field selector.

    >>> pod = {"metadata": {"labels": {"a": "1"}}, "spec": {"nodeName": "n"}}
    >>> is_selected(pod, "a in (1,2),!b", "spec.nodeName=n"), is_selected(pod, "a=2", "")
    (True, False)
    """
    object_labels = body["metadata"].get("labels") or {}
    return all(
        _label_matches(object_labels, term) for term in re.split(r",(?![^(]*\))", labels) if term
    ) and all(
        str(field_at(body, place) or "") == value
        for place, _, value in (term.partition("=") for term in fields.split(",") if term)
    )


def _label_matches(labels: Mapping[str, str], term: str) -> bool:
    if term.startswith("!"):
        return term[1:] not in labels
    key, within, values = term.partition(" in ")
    if within:
        return labels.get(key.strip()) in {value.strip() for value in values.strip("() ").split(",")}
    key, equals, value = term.partition("=")
    return labels.get(key) == value if equals else key in labels
