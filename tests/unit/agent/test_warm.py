"""Which warm pods a node creates and deletes, planned from every mixture of pods."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbranch.agent.context import NodeContext, PodDefaults
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pod_watch import node_is_full
from dbranch.agent.slot.pod_spec import (
    branch_pod,
    claim_patch,
    initdb_pod,
    slot_class_of,
    template_hash,
    warm_pod,
)
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import REJECTED_WARM_POD_RETRY_SECONDS
from dbranch.agent.warm.plan import (
    WarmFacts,
    WarmPlan,
    WarmPodFacts,
    free_counts,
    plan_warm,
    rejection_finding,
    warm_count,
)
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import MESSAGE_LIMIT
from dbranch.api.errors import InvalidInput
from dbranch.api.project import Project, ProjectNode

TEMPLATE, OLD_TEMPLATE = "template", "old-template"
SHOP = Project("team", "shop", "p-uid", node_name="n1", node=ProjectNode(initialized=True))
MAIN = Branch("team", "shop-main", "r-uid", "shop")
COPY = replace(MAIN, object_name="shop-copy", uid="c-uid")
LARGE = replace(MAIN, object_name="shop-large", uid="l-uid", resources={"requests": {"cpu": "2"}})
CONTEXT = NodeContext("n1", "n-uid", "dbranch-nodes", "dbranch")
LAYOUT = Layout(Path("/var/lib/dbranch"))
# Another project, whose branches all have resources.
BIG = replace(
    SHOP, name="big", uid="b-uid", postgres=replace(SHOP.postgres, resources={"requests": {"cpu": "2"}})
)
MAIN_CLASS, LARGE_CLASS = slot_class_of(SHOP), slot_class_of(BIG)
MAIN_HASH, LARGE_HASH = MAIN_CLASS.class_hash, LARGE_CLASS.class_hash


def pod(name: str, class_hash: str = MAIN_HASH, **fields: Any) -> PodFacts:
    """Return a running warm pod, but for `fields`."""
    return PodFacts(name, **{"class_hash": class_hash, "template_hash": TEMPLATE, "running": True, **fields})


def warm_facts(
    *pods: PodFacts, projects: tuple[Project, ...] = (SHOP,), node_full: bool = False
) -> WarmFacts:
    return WarmFacts(projects, tuple(WarmPodFacts(pod) for pod in pods), node_full)


def test_each_class_in_use_gets_its_number_of_pods() -> None:
    both = (SHOP, BIG)
    plan = plan_warm(2, 9, TEMPLATE, warm_facts(projects=both))
    assert plan.delete == () and Counter(c.class_hash for c in plan.create) == {MAIN_HASH: 2, LARGE_HASH: 2}
    pods = (pod("a"), pod("b", running=False), pod("c", LARGE_HASH), pod("d", LARGE_HASH))
    assert plan_warm(2, 9, TEMPLATE, warm_facts(*pods, projects=both)) == WarmPlan()


def test_a_class_is_in_use_while_a_new_branch_would_use_it() -> None:
    assert plan_warm(1, 9, TEMPLATE, warm_facts()).create == (MAIN_CLASS,)
    assert plan_warm(1, 9, TEMPLATE, WarmFacts()) == WarmPlan()
    for project in (
        replace(SHOP, state="Stopped"),
        replace(SHOP, deleting=True),
        replace(SHOP, node=ProjectNode()),
    ):
        pods = (pod("a"), pod("c", LARGE_HASH))
        facts = warm_facts(*pods, projects=(project,))
        assert plan_warm(1, 9, TEMPLATE, facts) == WarmPlan(pods)
        assert warm_count(1, TEMPLATE, facts, project) is None


def test_the_metric_has_a_series_for_each_class_in_use_and_no_other() -> None:
    metrics = AgentMetrics(2)

    def warm_slots() -> dict[str, str]:
        lines = metrics.response().body.decode().splitlines()
        series = (line.rpartition(" ") for line in lines if line.startswith("dbranch_agent_warm_slots{"))
        return {name.partition('class="')[2].partition('"')[0]: value for name, _, value in series}

    pods = (pod("a"), pod("b"), pod("c", running=False))
    metrics.set_warm_slots(
        free_counts(TEMPLATE, warm_facts(*pods, projects=(SHOP, BIG))), {(MAIN_HASH, "i"): 3}
    )
    assert warm_slots() == {MAIN_HASH: "2.0", LARGE_HASH: "0.0"}
    old = pod("a", template_hash=OLD_TEMPLATE)
    metrics.set_warm_slots(free_counts(TEMPLATE, warm_facts(old)), {})
    assert warm_slots() == {MAIN_HASH: "0.0"}
    metrics.observe_start("warm", 0.2)
    text = metrics.response().body.decode()
    assert 'dbranch_agent_branch_start_seconds_count{slot="warm"} 1.0' in text
    assert 'dbranch_agent_branch_start_seconds_count{slot="new"} 0.0' in text
    assert "dbranch_agent_warm_slots_desired 2.0" in text


def test_another_image_or_another_release_replaces_the_pods() -> None:
    newer = replace(SHOP, postgres=replace(SHOP.postgres, image="postgres:17.7"))
    old_image = pod("a")
    plan = plan_warm(1, 9, TEMPLATE, warm_facts(old_image, projects=(newer,)))
    assert plan == WarmPlan((old_image,), (slot_class_of(newer),))
    old_release = pod("a", template_hash=OLD_TEMPLATE)
    # The old pod counts until it is gone, so that there is never one too many.
    assert plan_warm(1, 9, TEMPLATE, warm_facts(old_release)) == WarmPlan((old_release,))
    assert plan_warm(1, 9, TEMPLATE, warm_facts(replace(old_release, terminating=True))) == WarmPlan()
    assert plan_warm(1, 9, TEMPLATE, warm_facts()) == WarmPlan((), (MAIN_CLASS,))


def test_of_a_surplus_the_running_pod_stays() -> None:
    pulling, running = pod("a", running=False), pod("b")
    facts = warm_facts(pulling, running)
    assert plan_warm(1, 9, TEMPLATE, facts) == WarmPlan((pulling,))
    assert plan_warm(1, 9, TEMPLATE, warm_facts(replace(pulling, terminating=True), running)) == WarmPlan()
    assert plan_warm(0, 9, TEMPLATE, facts) == WarmPlan((running, pulling))
    assert warm_count(0, TEMPLATE, facts, SHOP) is None and warm_count(2, TEMPLATE, facts, SHOP) == 1


def test_on_a_full_node_branches_go_first_and_a_rejected_pod_is_retried_later() -> None:
    warm = pod("a")
    assert plan_warm(1, 9, TEMPLATE, warm_facts(warm, node_full=True)) == WarmPlan((warm,))
    rejected = pod("a", running=False, terminated=True, reason="OutOfcpu")

    def plan_at(age_seconds: float) -> WarmPlan:
        return plan_warm(1, 9, TEMPLATE, WarmFacts((SHOP,), (WarmPodFacts(rejected, age_seconds),)))

    assert plan_at(REJECTED_WARM_POD_RETRY_SECONDS - 1) == WarmPlan()
    assert plan_at(REJECTED_WARM_POD_RETRY_SECONDS + 1).delete == (rejected,)


def test_a_pod_that_the_node_had_no_room_for() -> None:
    assert node_is_full(PodFacts("a", terminated=True, reason="OutOfmemory"))
    assert not node_is_full(PodFacts("a", terminated=True, reason="Evicted"))
    assert not node_is_full(PodFacts("a", running=True))


def test_a_class_that_is_rejected_is_left_out_until_its_delay_is_over() -> None:
    facts = replace(warm_facts(projects=(SHOP, BIG)), rejected={LARGE_HASH: "no"})
    assert Counter(c.class_hash for c in plan_warm(1, 9, TEMPLATE, facts).create) == {
        MAIN_HASH: 1,
        LARGE_HASH: 1,
    }
    waiting = replace(facts, not_tried=frozenset({LARGE_HASH}))
    assert plan_warm(1, 9, TEMPLATE, waiting).create == (MAIN_CLASS,)
    finding = rejection_finding(facts, BIG)
    assert finding and finding.done and rejection_finding(facts, SHOP) is None
    long = rejection_finding(replace(facts, rejected={LARGE_HASH: "no " * 200}), BIG)
    assert long and len(long.message) == MESSAGE_LIMIT and long.message.endswith("correct spec.postgres")


def test_the_maximum_is_shared_out_by_the_last_use() -> None:
    both, idle = (SHOP, BIG), {MAIN_HASH: 50.0, LARGE_HASH: 5.0}
    facts = replace(warm_facts(projects=both), idle_seconds=idle)
    assert plan_warm(2, 1, TEMPLATE, facts).create == (LARGE_CLASS,)
    assert plan_warm(2, 3, TEMPLATE, facts).create.count(LARGE_CLASS) == 2
    # What is known of the use counts, then the age of a warm pod, which came after the last claim.
    pods = (WarmPodFacts(pod("a"), 3.0), WarmPodFacts(pod("c", LARGE_HASH), 9.0))
    assert plan_warm(1, 1, TEMPLATE, WarmFacts(both, pods)).delete == (pods[1].pod,)
    assert plan_warm(1, 1, TEMPLATE, WarmFacts(both, pods, idle_seconds=idle)).delete == (pods[0].pod,)
    # One that never was there drives none out.
    assert plan_warm(1, 1, TEMPLATE, WarmFacts(both, pods[:1])) == WarmPlan()


@settings(deadline=None)
@given(
    limit=st.integers(0, 3),
    maximum=st.integers(0, 6),
    idle=st.dictionaries(st.sampled_from([MAIN_HASH, LARGE_HASH]), st.floats(0, 100)),
    pods=st.lists(
        st.builds(
            pod,
            name=st.text("abcdef", min_size=1, max_size=3),
            class_hash=st.sampled_from([MAIN_HASH, LARGE_HASH, "other"]),
            template_hash=st.sampled_from([TEMPLATE, OLD_TEMPLATE]),
            running=st.booleans(),
            terminated=st.booleans(),
            terminating=st.booleans(),
        ),
        max_size=8,
        unique_by=lambda pod: pod.name,
    ),
)
def test_every_mixture_converges_to_the_limits_and_never_exceeds_them(
    limit: int, maximum: int, idle: dict[str, float], pods: list[PodFacts]
) -> None:
    def facts_of(existing: list[PodFacts]) -> WarmFacts:
        return replace(warm_facts(*existing, projects=(SHOP, BIG)), idle_seconds=idle)

    existing = pods
    for reconcile in range(4):
        plan = plan_warm(limit, maximum, TEMPLATE, facts_of(existing))
        created = [
            pod(f"new-{reconcile}-{n}", slot_class.class_hash) for n, slot_class in enumerate(plan.create)
        ]
        kept = [pod for pod in existing if pod not in plan.delete and not pod.terminating]
        for class_hash in {pod.class_hash for pod in created}:
            # Terminating pods included: they still use the node's resources.
            assert sum(pod.class_hash == class_hash for pod in (*existing, *created)) <= limit
        assert not created or len(existing) + len(created) <= maximum
        existing = [*kept, *created]
    counts = Counter(pod.class_hash for pod in existing)
    assert counts.total() == min(2 * limit, maximum)
    assert abs(counts[MAIN_HASH] - counts[LARGE_HASH]) <= 1 and counts["other"] == 0
    assert plan_warm(limit, maximum, TEMPLATE, facts_of(existing)) == WarmPlan()


def test_a_claimed_pod_equals_one_created_for_the_branch() -> None:
    branch = replace(LARGE, annotations={names.RESTARTED_AT: "2026-01-01T00:00:00Z"})
    manifest = warm_pod(CONTEXT, LAYOUT, slot_class_of(SHOP, branch), "s", "true")
    assert names.LABEL_BRANCH_UID not in manifest["metadata"]["labels"]
    patch = claim_patch(SHOP, branch, "uid")
    assert [operation["value"] for operation in patch if operation["op"] == "test"] == ["uid", None, None]
    for operation in patch:
        if operation["op"] == "add":
            _, _, field, key = operation["path"].split("/")
            manifest["metadata"][field][key.replace("~1", "/")] = operation["value"]
    assert manifest == branch_pod(CONTEXT, LAYOUT, SHOP, branch, "s", "true")


def test_what_changes_the_class_and_what_the_template() -> None:
    for postgres in (
        replace(SHOP.postgres, image="postgres:16"),
        replace(SHOP.postgres, run_as_user=70),
        replace(SHOP.postgres, resources={"limits": {"memory": "1Gi"}}),
        replace(SHOP.postgres, image_pull_secrets=("registry",)),
    ):
        assert slot_class_of(replace(SHOP, postgres=postgres), COPY).class_hash != MAIN_HASH
    other_project, other_branch = replace(SHOP, name="other", uid="o-uid"), replace(COPY, uid="o")
    assert slot_class_of(other_project, other_branch).class_hash == MAIN_HASH
    # A pull secret is its project's: a slot whose image it pulled is no other project's.
    private = replace(SHOP, postgres=replace(SHOP.postgres, image_pull_secrets=("registry",)))
    assert slot_class_of(private).class_hash != slot_class_of(replace(private, uid="o-uid")).class_hash
    assert template_hash(CONTEXT, LAYOUT, "true") != template_hash(CONTEXT, LAYOUT, "false")
    manifest = warm_pod(CONTEXT, LAYOUT, MAIN_CLASS, "s", "true")
    assert manifest["metadata"]["annotations"] == {
        names.TEMPLATE_HASH: template_hash(CONTEXT, LAYOUT, "true")
    }
    # The slot's name is the pod's name and a label; its directory is below a path.
    assert json.dumps(manifest).count('"s"') == 2


DEFAULTS = PodDefaults(
    resources={
        "requests": {"cpu": "2m", "memory": "32Mi", "ephemeral-storage": "16Mi"},
        "limits": {"ephemeral-storage": "512Mi"},
    },
    shared_memory="1Gi",
    root_priority="roots",
    copy_priority="copies",
)
LIMITED = replace(CONTEXT, pods=DEFAULTS)


def resources_of(manifest: dict[str, Any]) -> Any:
    return manifest["spec"]["containers"][0]["resources"]


def size_limits(manifest: dict[str, Any]) -> dict[str, str | None]:
    """Return the size limits of the pod's empty directories, by name; each of them is in memory."""
    directories = {
        volume["name"]: volume["emptyDir"] for volume in manifest["spec"]["volumes"] if "emptyDir" in volume
    }
    assert all(directory["medium"] == "Memory" for directory in directories.values())
    return {name: directory.get("sizeLimit") for name, directory in directories.items()}


def test_every_directory_that_a_pod_can_write_has_a_limit() -> None:
    manifest = branch_pod(LIMITED, LAYOUT, SHOP, COPY, "s", "true")
    assert size_limits(manifest) == {"tmp": "64Mi", "image-volume": "1Mi", "shm": "1Gi"}
    assert resources_of(manifest) == DEFAULTS.resources
    mounts = {mount["mountPath"] for mount in manifest["spec"]["containers"][0]["volumeMounts"]}
    assert {"/var/lib/postgresql", "/var/lib/postgresql/data"} <= mounts
    limited = replace(SHOP, postgres=replace(SHOP.postgres, resources={"limits": {"memory": "2Gi"}}))
    manifest = branch_pod(LIMITED, LAYOUT, limited, COPY, "s", "true")
    assert size_limits(manifest)["shm"] == "2Gi"
    # What the project says of a resource stays as it is: a limit is the request, too.
    assert resources_of(manifest) == {
        "requests": {"cpu": "2m", "ephemeral-storage": "16Mi"},
        "limits": {"memory": "2Gi", "ephemeral-storage": "512Mi"},
    }
    initdb = initdb_pod(LIMITED, LAYOUT, limited, MAIN, "true")
    assert resources_of(initdb) == resources_of(manifest)
    assert size_limits(initdb) == {"tmp": "64Mi", "image-volume": "1Mi"}


def test_roots_have_a_priority_of_their_own_and_no_warm_slots() -> None:
    root, copy = slot_class_of(SHOP, MAIN), slot_class_of(SHOP, COPY)
    assert root.class_hash != copy.class_hash == slot_class_of(SHOP).class_hash
    of_first_release = PodFacts("s", class_hash=copy.class_hash)
    assert root.includes_apart_from_priority(of_first_release) and not root.includes(of_first_release)
    assert not root.includes_apart_from_priority(replace(of_first_release, class_hash=LARGE_HASH))
    pods = [branch_pod(LIMITED, LAYOUT, SHOP, branch, "s", "true")["spec"] for branch in (MAIN, COPY)]
    assert [pod["priorityClassName"] for pod in pods] == ["roots", "copies"]
    assert initdb_pod(LIMITED, LAYOUT, SHOP, MAIN, "true")["spec"]["priorityClassName"] == "roots"
    assert "priorityClassName" not in branch_pod(CONTEXT, LAYOUT, SHOP, MAIN, "s", "true")["spec"]
    assert plan_warm(1, 9, TEMPLATE, warm_facts()).create == (MAIN_CLASS,)


def test_warm_slots_are_replaced_when_the_defaults_change() -> None:
    assert template_hash(LIMITED, LAYOUT, "true") != template_hash(CONTEXT, LAYOUT, "true")


def test_the_defaults_are_the_charts_values() -> None:
    values = {
        "defaultResources": DEFAULTS.resources,
        "sharedMemory": "1Gi",
        "priorityClasses": {"create": True, "root": "roots", "copy": "copies"},
    }
    assert PodDefaults.parse(json.dumps(values)) == DEFAULTS
    assert PodDefaults.parse("") == PodDefaults()
    with pytest.raises(InvalidInput):
        PodDefaults.parse("[1]")


def test_a_pod_has_no_groups_of_its_image_where_the_node_can_do_that() -> None:
    strict = replace(CONTEXT, strict_groups=True)
    for make in (
        branch_pod(strict, LAYOUT, SHOP, COPY, "s", "true"),
        initdb_pod(strict, LAYOUT, SHOP, MAIN, "true"),
    ):
        assert make["spec"]["securityContext"]["supplementalGroupsPolicy"] == "Strict"
    # kubelet refuses it where the container runtime cannot.
    older = branch_pod(CONTEXT, LAYOUT, SHOP, COPY, "s", "true")["spec"]["securityContext"]
    assert "supplementalGroupsPolicy" not in older


def test_the_image_of_initdb_gets_the_verifiers_of_the_project_and_not_those_of_its_branches() -> None:
    def items(project: Project) -> list[str]:
        volumes = initdb_pod(CONTEXT, LAYOUT, project, MAIN, "true")["spec"]["volumes"]
        return [
            item["path"] for volume in volumes if "secret" in volume for item in volume["secret"]["items"]
        ]

    new = replace(SHOP, node=ProjectNode())
    assert items(new) == ["verifier", "superuser"]
    assert items(replace(new, postgres=replace(new.postgres, user="postgres"))) == ["verifier"]
