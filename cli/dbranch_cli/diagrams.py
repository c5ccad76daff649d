"""A project's branches as the text of a diagram. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dbranch_cli.objects import active_branch_of, branch_name_of
from dbranch_cli.view import Json, state_of


def mermaid_graph(project: Json, branches: Sequence[Json]) -> str:
    """Return a Mermaid flowchart (https://mermaid.js.org/syntax/flowchart.html): an edge from source to branch.

    The active branch is bold; a source that is deleted is dashed.
    """
    nodes, edges, deleted = _graph(project, branches)
    ids = {name: f"b{number}" for number, name in enumerate([*nodes, *deleted])}
    lines = ["flowchart LR"]
    lines += [f'  {ids[name]}["{label}"]' for name, label in nodes.items()]
    lines += [f'  {ids[name]}["{name} (deleted)"]:::deleted' for name in deleted]
    lines += [f"  {ids[source]} --> {ids[name]}" for source, name in edges]
    lines += [f"  style {ids[name]} stroke-width:3px" for name in nodes if name == active_branch_of(project)]
    if deleted:
        lines.append("  classDef deleted stroke-dasharray:4")
    return "\n".join(lines)


def dot_graph(project: Json, branches: Sequence[Json]) -> str:
    """Return a graph in DOT (https://graphviz.org/doc/info/lang.html): an edge from source to branch."""
    nodes, edges, deleted = _graph(project, branches)
    active = active_branch_of(project)
    lines = [f"digraph {json.dumps(project['metadata']['name'])} {{", "  rankdir=LR", "  node [shape=box]"]
    for name, label in nodes.items():
        bold = ", style=bold" if name == active else ""
        lines.append(f"  {json.dumps(name)} [label={json.dumps(label)}{bold}]")
    lines += [f"  {json.dumps(name)} [style=dashed]" for name in deleted]
    lines += [f"  {json.dumps(source)} -> {json.dumps(name)}" for source, name in edges]
    return "\n".join([*lines, "}"])


def _graph(
    project: Json, branches: Sequence[Json]
) -> tuple[dict[str, str], list[tuple[str, str]], list[str]]:
    """Return the labels by branch, the edges from source to branch, and the sources that are deleted."""
    active = active_branch_of(project)
    nodes: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for body in branches:
        name, state = branch_name_of(body), state_of(body)
        remarks = [*(["active"] if name == active else []), *([state] if state != "Ready" else [])]
        nodes[name] = name + (f" ({', '.join(remarks)})" if remarks else "")
        if body["spec"].get("source"):
            edges.append((str(body["spec"]["source"]), name))
    return nodes, edges, sorted({source for source, _ in edges} - nodes.keys())
