"""What another release wrote: keys and words that are unknown here stop no reader, and take nobody out of service.

A new release may add keys anywhere, use new words for states and reasons, and leave out what is optional. Each such
change of each place is read by all parts of this one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests import factories
from tests.unit.agent.branch_model import COPY, ROOMY, marker
from tests.unit.controller.rig import Rig

from dbranch.agent.branch.facts import BranchFacts
from dbranch.agent.branch.plan import plan_branch as plan_branch_on_node
from dbranch.agent.pool.record import NewerRecord, PoolRecord, parse_record, render_record
from dbranch.agent.slot.pod_status import pod_facts, pod_finding
from dbranch.agent.volume.marker import Marker, NewerMarker, parse_marker, render_marker
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.errors import InvalidInput
from dbranch.api.project import parse_project
from dbranch.controller.keys import key_of
from dbranch.controller.nodes import agent_pod, node_object
from dbranch.controller.proxy_pods import proxy_pod_of
from dbranch.controller.stale import stale
from dbranch.proxy.project import read_project
from dbranch.proxy.routes import Backend, cancel_candidates, decide, decide_fate
from dbranch_cli import view

Json = dict[str, Any]
_NEW_WORD = "WordOfAnotherRelease"
# Keys whose values are words, or texts in a form of their own, which a newer release may extend.
_WORDS = frozenset(
    {
        *(
            "reason",
            "state",
            "type",
            "phase",
            "protection",
            "deletionPolicy",
            "serviceType",
            "onSwitch",
            "mode",
        ),
        *("proxyProtocol", "drainTimeout", "startTimeout", "handshakeTimeout", "size", "slot", "pod"),
        *("imageID", "image", "imageDigest", "passwordVersion", "postgresVersion", "message"),
        *(
            names.AGENT_HOST_FREE,
            names.AGENT_RETAINED,
            names.RESTARTED_AT,
            names.ALTER_SYSTEM_RESET_AT,
            names.TEMPLATE_HASH,
            names.LABEL_CLASS,
        ),
    }
)
# Without these there is no such object.
_REQUIRED = frozenset({"metadata", "name", "namespace", "uid", "spec", "project", "kind", "containers"})

PROJECT = (
    factories.project()
    .spec(
        state="Running",
        protection="Disabled",
        deletionPolicy="Delete",
        storage={"size": "1Gi", "nodeSelector": {}},
        postgres={
            "image": "postgres:17",
            "passwordSecret": {"name": "p"},
            "imagePullSecrets": [{"name": "r"}],
        },
        proxy={
            "onSwitch": "Drain",
            "drainTimeout": "60s",
            "startTimeout": "30s",
            "proxyProtocol": "Disabled",
            "serviceType": "ClusterIP",
            "limits": {"sessions": 5},
            "tls": {"secretName": "t", "mode": "Optional"},
        },
    )
    .bound()
    .up()
    .node(image="postgres:17", imageID="sha256:a", warmSlots=1, slots=Finding(Reason.PENDING, "x").as_dict())
    .routed("main")
    .acknowledged("p1", 1)
    .status(
        routes=[{"branch": "main", "address": "10.0.0.1", "port": 20001, "state": "Ready"}], phase="Ready"
    )
    .reported(Condition.READY, Reason.AVAILABLE)
    .reported(Condition.ROUTED, Reason.ROUTED)
    .body()
)
BRANCH = (
    factories.branch("x")
    .spec(state="Running", postgres={"parameters": {"a": "b"}, "resources": {}})
    .bound()
    .of("shop-main-uid")
    .accepting()
    .node(
        slot="slot-a",
        pod="slot-a",
        imageID="sha256:a",
        deletion=Finding(Reason.WAITING_FOR_AGENT, "x").as_dict(),
    )
    .reported(Condition.READY, Reason.AVAILABLE)
    .reported(Condition.SCHEDULED, Reason.BOUND)
    .annotated(**dict.fromkeys((names.RESTARTED_AT, names.ALTER_SYSTEM_RESET_AT), "2026-01-01T00:00:00Z"))
    .body()
)
POD: Json = {
    "metadata": {
        "name": "slot-a",
        "namespace": "dbranch-nodes",
        "uid": "s-uid",
        "labels": {names.LABEL_CLASS: "c"},
        "annotations": {names.TEMPLATE_HASH: "t"},
    },
    "spec": {"containers": [{"image": "postgres:17"}], "nodeName": "n1"},
    "status": {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {
                "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}},
                "lastState": {"terminated": {"message": "FATAL: no"}},
                "imageID": "sha256:a",
                "restartCount": 1,
            }
        ],
    },
}


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all members and items of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*path, key), *places_of(item, (*path, key)))]


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def variants_of(body: Json) -> Iterator[tuple[str, Json]]:
    """Yield an object as another release may have written it, with each single change once, and its name.

    No nulls: the API server stores none where a schema does not allow them.
    """
    for place in places_of(body):
        for change in ("new key", "new entry", "new word", "without"):
            changed = copy.deepcopy(body)
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            value, key = parent[place[-1]], place[-1]
            if change == "new key" and isinstance(value, dict):
                value["aNewKey"] = {"reason": _NEW_WORD}
            # Of `proxies` the API server demands the key of each entry.
            elif change == "new entry" and _holds_objects(value) and key != "proxies":
                value.append({"aNewKey": 1})
            elif change == "new word" and key in _WORDS and isinstance(value, str):
                parent[key] = _NEW_WORD
            elif change == "without" and isinstance(parent, dict) and key not in _REQUIRED:
                del parent[key]
            else:
                continue
            yield f"{change}: {'.'.join(map(str, place))}", changed


def check(read: Callable[[Json], None], body: Json) -> None:
    """Call the reader with every variant; the failure names the variant."""
    for name, variant in variants_of(body):
        try:
            read(variant)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def read_project_and_branch(project: Json, branch: Json) -> None:
    """Read both as every part of this release does."""
    rig = Rig()
    parsed, item = parse_project(project), parse_branch(branch)
    # The controller: from its cache, and by its reconciles.
    rig.api.put(f"/apis/dbranch.io/v1alpha1/namespaces/{factories.NAMESPACE}/dbprojects", project)
    rig.api.put(f"/apis/dbranch.io/v1alpha1/namespaces/{factories.NAMESPACE}/dbbranches", branch)
    cache = rig.cache()
    assert [p.name for p in cache.all_projects()] == ["shop"] and [b.name for b in cache.all_branches()] == [
        "x"
    ]
    stale([parsed, item], cache)
    rig.projects.reconcile(factories.NAMESPACE, "shop", cache)
    rig.branches.reconcile(factories.NAMESPACE, "shop-x", cache)
    assert key_of(parsed) and key_of(item)
    # The proxy.
    read_routes(project)
    # The agent, of what it reported itself.
    facts = BranchFacts(True, ROOMY, marker(COPY))
    plan = plan_branch_on_node(parsed, item, facts)
    assert plan.storage.reason != Reason.DATA_LOST
    # The command line.
    view.status_block(project, [branch], "team")
    view.branch_table(project, [branch], wide=True)
    view.project_table([project], "shop", wide=True)
    view.branch_block(branch, active=True, events=[])
    view.branch_tree(project, [branch])


def read_routes(project: Json) -> None:
    try:
        table = read_project(project).table
    except InvalidInput:
        # Without these the proxy keeps the routes that it has.
        assert not {"branch", "generation"} <= project["status"]["route"].keys()
        return
    for requested in (None, "main", "x"):
        decide(table, requested)
    decide_fate(table, Backend("main", "10.0.0.1", 20001, requested=False))
    cancel_candidates(table, ["main"], 3)


def test_no_reader_of_a_project_stops() -> None:
    check(lambda project: read_project_and_branch(project, copy.deepcopy(BRANCH)), PROJECT)


def test_no_reader_of_a_branch_stops() -> None:
    check(lambda branch: read_project_and_branch(copy.deepcopy(PROJECT), branch), BRANCH)


def read_pod(body: Json) -> None:
    pod_finding(pod_facts(body), "branch x")
    agent_pod(body)
    proxy_pod_of(body)
    node_object(body)


@pytest.mark.parametrize(
    "body", [POD, factories.agent_pod(retained="u1,u2"), factories.proxy_pod(), factories.node()]
)
def test_no_reader_of_a_pod_or_node_stops(body: Json) -> None:
    check(read_pod, body)


MARKER = json.loads(render_marker(marker(COPY)))
RECORD = PoolRecord("p", "u", "team", "shop")


def test_a_marker_with_new_keys_is_read() -> None:
    for name, variant in variants_of(MARKER):
        if name.startswith("new key") or name.startswith("new word"):
            assert parse_marker(json.dumps(variant)) is not None, name
    extended = parse_marker(json.dumps({**MARKER, "aNewKey": {"a": 1}}))
    assert isinstance(extended, Marker) and json.loads(render_marker(extended))["aNewKey"] == {"a": 1}


@pytest.mark.parametrize("change", [{"role": _NEW_WORD}, {"kind": _NEW_WORD}, {"format": 99}])
def test_a_marker_of_a_newer_kind_is_left_alone(change: Json) -> None:
    assert isinstance(parse_marker(json.dumps({**MARKER, **change})), NewerMarker)


def test_a_record_of_a_pool_with_new_keys_is_read_and_one_of_a_newer_format_left_alone() -> None:
    body = json.loads(render_record(RECORD))
    record = parse_record(json.dumps({**body, "aNewKey": {"uid": "c"}}))
    assert isinstance(record, PoolRecord) and json.loads(render_record(record))["aNewKey"] == {"uid": "c"}
    assert parse_record(json.dumps({**body, "format": 99})) == NewerRecord(99)


def test_a_branch_that_a_newer_agent_serves_stays_in_service() -> None:
    """A new reason that comes with an address: users can connect, so nothing is taken away from them."""
    rig = Rig()
    rig.put(factories.project().bound().up().routed("main"))
    warned = (
        factories.branch().bound().accepting().node(postgres={"reason": _NEW_WORD, "message": "and so on"})
    )
    rig.put(warned)
    rig.branches.reconcile(factories.NAMESPACE, "shop-main", rig.cache())
    assert rig.branch()["status"]["route"]["state"] == "Ready"
    # Without an address it is only shown.
    body = warned.node(address=None).parsed()
    assert body.node.postgres == Finding(Reason(_NEW_WORD), "and so on")


@pytest.mark.parametrize("word", ["Retain", _NEW_WORD])
def test_only_a_policy_that_says_so_deletes_a_pool(word: str) -> None:
    assert parse_project(factories.project().spec(deletionPolicy=word).body()).keeps_pool
    assert not parse_project(factories.project().body()).keeps_pool
