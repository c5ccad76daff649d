"""Which warm pods a node creates and deletes, planned from every mixture of pods."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pod_watch import node_is_full
from dbranch.agent.slot.pod_spec import branch_pod, claim_patch, slot_class_of, template_hash, warm_pod
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import REJECTED_WARM_POD_RETRY_SECONDS
from dbranch.agent.warm.plan import WarmFacts, WarmPlan, WarmPodFacts, free_counts, plan_warm, warm_count
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project, ProjectNode

TEMPLATE, OLD_TEMPLATE = "template", "old-template"
SHOP = Project("team", "shop", "p-uid", node_name="n1", node=ProjectNode(initialized=True))
MAIN = Branch("team", "shop-main", "r-uid", "shop")
LARGE = replace(MAIN, object_name="shop-large", uid="l-uid", resources={"requests": {"cpu": "2"}})
CONTEXT = NodeContext("n1", "n-uid", "dbranch-nodes", "dbranch")
LAYOUT = Layout(Path("/var/lib/dbranch"))
MAIN_CLASS, LARGE_CLASS = slot_class_of(SHOP), slot_class_of(SHOP, LARGE)
MAIN_HASH, LARGE_HASH = MAIN_CLASS.class_hash, LARGE_CLASS.class_hash


def pod(name: str, class_hash: str = MAIN_HASH, **fields: Any) -> PodFacts:
    """Return a running warm pod, but for `fields`."""
    return PodFacts(name, **{"class_hash": class_hash, "template_hash": TEMPLATE, "running": True, **fields})


def warm_facts(
    *pods: PodFacts, branches: tuple[Branch, ...] = (MAIN,), project: Project = SHOP, node_full: bool = False
) -> WarmFacts:
    return WarmFacts((project,), branches, tuple(WarmPodFacts(pod) for pod in pods), node_full)


def test_each_class_in_use_gets_its_number_of_pods() -> None:
    both = (MAIN, LARGE)
    assert plan_warm(2, TEMPLATE, warm_facts(branches=both)) == WarmPlan(
        (), (MAIN_CLASS, MAIN_CLASS, LARGE_CLASS, LARGE_CLASS)
    )
    pods = (pod("a"), pod("b", running=False), pod("c", LARGE_HASH), pod("d", LARGE_HASH))
    assert plan_warm(2, TEMPLATE, warm_facts(*pods, branches=both)) == WarmPlan()


def test_a_class_is_in_use_while_a_new_branch_or_a_running_one_would_use_it() -> None:
    for unused in (replace(LARGE, state="Stopped"), replace(LARGE, deleted="now")):
        assert plan_warm(1, TEMPLATE, WarmFacts((SHOP,), (unused,))).create == (MAIN_CLASS,)
    assert plan_warm(1, TEMPLATE, WarmFacts((), (MAIN,))) == WarmPlan()
    for project in (
        replace(SHOP, state="Stopped"),
        replace(SHOP, deleting=True),
        replace(SHOP, node=ProjectNode()),
    ):
        pods = (pod("a"), pod("c", LARGE_HASH))
        facts = warm_facts(*pods, branches=(MAIN, LARGE), project=project)
        assert plan_warm(1, TEMPLATE, facts) == WarmPlan(pods)
        assert warm_count(1, TEMPLATE, facts, project) is None


def test_the_metric_has_a_series_for_each_class_in_use_and_no_other() -> None:
    metrics = AgentMetrics(2)

    def warm_slots() -> dict[str, str]:
        lines = metrics.response().body.decode().splitlines()
        series = (line.rpartition(" ") for line in lines if line.startswith("dbranch_agent_warm_slots{"))
        return {name.partition('class="')[2].partition('"')[0]: value for name, _, value in series}

    pods = (pod("a"), pod("b"), pod("c", running=False))
    metrics.set_warm_slots(free_counts(TEMPLATE, warm_facts(*pods, branches=(MAIN, LARGE))))
    assert warm_slots() == {MAIN_HASH: "2.0", LARGE_HASH: "0.0"}
    old = pod("a", template_hash=OLD_TEMPLATE)
    metrics.set_warm_slots(free_counts(TEMPLATE, warm_facts(old)))
    assert warm_slots() == {MAIN_HASH: "0.0"}
    metrics.observe_start("warm", 0.2)
    text = metrics.response().body.decode()
    assert 'dbranch_agent_branch_start_seconds_count{slot="warm"} 1.0' in text
    assert 'dbranch_agent_branch_start_seconds_count{slot="new"} 0.0' in text
    assert "dbranch_agent_warm_slots_desired 2.0" in text


def test_another_image_or_another_release_replaces_the_pods() -> None:
    newer = replace(SHOP, postgres=replace(SHOP.postgres, image="postgres:17.7"))
    old_image = pod("a")
    plan = plan_warm(1, TEMPLATE, warm_facts(old_image, project=newer))
    assert plan == WarmPlan((old_image,), (slot_class_of(newer),))
    old_release = pod("a", template_hash=OLD_TEMPLATE)
    # The old pod counts until it is gone, so that there is never one too many.
    assert plan_warm(1, TEMPLATE, warm_facts(old_release)) == WarmPlan((old_release,))
    assert plan_warm(1, TEMPLATE, warm_facts(replace(old_release, terminating=True))) == WarmPlan()
    assert plan_warm(1, TEMPLATE, warm_facts()) == WarmPlan((), (MAIN_CLASS,))


def test_of_a_surplus_the_running_pod_stays() -> None:
    pulling, running = pod("a", running=False), pod("b")
    facts = warm_facts(pulling, running)
    assert plan_warm(1, TEMPLATE, facts) == WarmPlan((pulling,))
    assert plan_warm(1, TEMPLATE, warm_facts(replace(pulling, terminating=True), running)) == WarmPlan()
    assert plan_warm(0, TEMPLATE, facts) == WarmPlan((running, pulling))
    assert warm_count(0, TEMPLATE, facts, SHOP) is None and warm_count(2, TEMPLATE, facts, SHOP) == 1


def test_on_a_full_node_branches_go_first_and_a_rejected_pod_is_retried_later() -> None:
    warm = pod("a")
    assert plan_warm(1, TEMPLATE, warm_facts(warm, node_full=True)) == WarmPlan((warm,))
    rejected = pod("a", running=False, terminated=True, reason="OutOfcpu")

    def plan_at(age_seconds: float) -> WarmPlan:
        return plan_warm(1, TEMPLATE, WarmFacts((SHOP,), (MAIN,), (WarmPodFacts(rejected, age_seconds),)))

    assert plan_at(REJECTED_WARM_POD_RETRY_SECONDS - 1) == WarmPlan()
    assert plan_at(REJECTED_WARM_POD_RETRY_SECONDS + 1).delete == (rejected,)


def test_a_pod_that_the_node_had_no_room_for() -> None:
    assert node_is_full(PodFacts("a", terminated=True, reason="OutOfmemory"))
    assert not node_is_full(PodFacts("a", terminated=True, reason="Evicted"))
    assert not node_is_full(PodFacts("a", running=True))


@settings(deadline=None)
@given(
    limit=st.integers(0, 3),
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
def test_every_mixture_converges_to_the_limit_and_never_exceeds_it(limit: int, pods: list[PodFacts]) -> None:
    branches = (MAIN, LARGE)
    existing = pods
    for reconcile in range(4):
        plan = plan_warm(limit, TEMPLATE, warm_facts(*existing, branches=branches))
        created = [
            pod(f"new-{reconcile}-{n}", slot_class.class_hash) for n, slot_class in enumerate(plan.create)
        ]
        kept = [pod for pod in existing if pod not in plan.delete and not pod.terminating]
        for class_hash in {pod.class_hash for pod in created}:
            # Terminating pods included: they still use the node's resources.
            assert sum(pod.class_hash == class_hash for pod in (*existing, *created)) <= limit
        existing = [*kept, *created]
    assert sorted(pod.class_hash for pod in existing) == sorted([MAIN_HASH, LARGE_HASH] * limit)
    assert plan_warm(limit, TEMPLATE, warm_facts(*existing, branches=branches)) == WarmPlan()


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
        assert slot_class_of(replace(SHOP, postgres=postgres), MAIN).class_hash != MAIN_HASH
    other_project, other_branch = replace(SHOP, name="other", uid="o-uid"), replace(MAIN, uid="o")
    assert slot_class_of(other_project, other_branch).class_hash == MAIN_HASH
    assert template_hash(CONTEXT, LAYOUT, "true") != template_hash(CONTEXT, LAYOUT, "false")
    manifest = warm_pod(CONTEXT, LAYOUT, MAIN_CLASS, "s", "true")
    assert manifest["metadata"]["annotations"] == {
        names.TEMPLATE_HASH: template_hash(CONTEXT, LAYOUT, "true")
    }
    # The slot's name is the pod's name and a label; its directory is below a path.
    assert json.dumps(manifest).count('"s"') == 2
