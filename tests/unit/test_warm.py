"""Which slots wait on a node, decided from every mixture of pods."""

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
from dbranch.agent.slot.pod_spec import (
    branch_pod,
    claim_patch,
    slot_class,
    slot_class_of,
    template_hash,
    warm_pod,
)
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.warm.plan import AGAIN, Waiting, WarmFacts, WarmPlan, free_counts, plan_warm, warm_count
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project, ProjectNode

FORM = "f"
SHOP = Project("team", "shop", "p-uid", node_name="n1", node=ProjectNode(initialized=True))
MAIN = Branch("team", "shop-main", "r-uid", "shop")
LARGE = replace(MAIN, object_name="shop-large", uid="l-uid", resources={"requests": {"cpu": "2"}})
HOME = NodeContext("n1", "n-uid", "dbranch-nodes", "dbranch")
LAYOUT = Layout(Path("/var/lib/dbranch"))
USUAL, BIG = slot_class_of(SHOP), slot_class_of(SHOP, LARGE)


def waits(name: str, kind: str = USUAL.word, **more: Any) -> PodFacts:
    return PodFacts(name, **{"slot_class": kind, "form": FORM, "running": True, **more})


def facts(*pods: PodFacts, project: Project = SHOP, **more: Any) -> WarmFacts:
    return WarmFacts((project,), (MAIN, LARGE), tuple(Waiting(pod) for pod in pods), **more)


def test_each_class_in_use_has_its_number() -> None:
    assert plan_warm(2, FORM, facts()) == WarmPlan((), (USUAL, USUAL, BIG, BIG))
    there = facts(waits("a"), waits("b", running=False), waits("c", BIG.word), waits("d", BIG.word))
    assert plan_warm(2, FORM, there) == WarmPlan()


def test_a_class_is_in_use_while_a_new_branch_or_a_running_one_would_take_it() -> None:
    stopped = replace(LARGE, state="Stopped")
    assert plan_warm(1, FORM, WarmFacts((SHOP,), (stopped,))).make == (USUAL,)
    assert plan_warm(1, FORM, WarmFacts((SHOP,), (replace(LARGE, deleted="now"),))).make == (USUAL,)
    assert plan_warm(1, FORM, WarmFacts((), (MAIN,))) == WarmPlan()
    for project in (
        replace(SHOP, state="Stopped"),
        replace(SHOP, deleting=True),
        replace(SHOP, node=ProjectNode()),
    ):
        there = facts(waits("a"), waits("c", BIG.word), project=project)
        assert plan_warm(1, FORM, there) == WarmPlan(tuple(w.pod for w in there.waiting))
        assert warm_count(1, FORM, there, project) is None


def test_metrics_have_a_number_for_each_class_in_use_and_no_other() -> None:
    metrics = AgentMetrics(2)

    def told() -> dict[str, str]:
        lines = metrics.text().decode().splitlines()
        words = (line.rpartition(" ") for line in lines if line.startswith("dbranch_agent_warm_slots{"))
        return {name.partition('class="')[2].partition('"')[0]: value for name, _, value in words}

    metrics.saw(free_counts(FORM, facts(waits("a"), waits("b"), waits("c", running=False))))
    assert told() == {USUAL.word: "2.0", BIG.word: "0.0"}
    metrics.saw(free_counts(FORM, WarmFacts((SHOP,), (MAIN,), (Waiting(waits("a", form="older")),))))
    assert told() == {USUAL.word: "0.0"}
    metrics.started("waiting", 0.2)
    text = metrics.text().decode()
    assert 'dbranch_agent_branch_start_seconds_count{slot="waiting"} 1.0' in text
    assert 'dbranch_agent_branch_start_seconds_count{slot="new"} 0.0' in text
    assert "dbranch_agent_warm_slots_desired 2.0" in text


def test_another_image_or_another_release_makes_them_anew() -> None:
    newer = replace(SHOP, postgres=replace(SHOP.postgres, image="postgres:17.7"))
    old = waits("a")
    todo = plan_warm(1, FORM, WarmFacts((newer,), (MAIN,), (Waiting(old),)))
    assert todo == WarmPlan((old,), (slot_class_of(newer),))
    of_before = waits("a", form="older")
    one = WarmFacts((SHOP,), (MAIN,), (Waiting(of_before),))
    # The old one counts until it is gone, so that there is never one too many.
    assert plan_warm(1, FORM, one) == WarmPlan((of_before,))
    assert (
        plan_warm(1, FORM, replace(one, waiting=(Waiting(replace(of_before, terminating=True)),)))
        == WarmPlan()
    )
    assert plan_warm(1, FORM, replace(one, waiting=())) == WarmPlan((), (USUAL,))


def test_a_surplus_goes_and_what_runs_stays() -> None:
    pulls, runs = waits("a", running=False), waits("b")
    there = WarmFacts((SHOP,), (MAIN,), (Waiting(pulls), Waiting(runs)))
    assert plan_warm(1, FORM, there) == WarmPlan((pulls,))
    ending = replace(there, waiting=(Waiting(replace(pulls, terminating=True)), Waiting(runs)))
    assert plan_warm(1, FORM, ending) == WarmPlan()
    assert plan_warm(0, FORM, there) == WarmPlan((runs, pulls))
    assert warm_count(0, FORM, there, SHOP) is None and warm_count(2, FORM, there, SHOP) == 1


def test_on_a_node_without_room_branches_go_first_and_nothing_is_tried_at_once() -> None:
    there = WarmFacts((SHOP,), (MAIN,), (Waiting(waits("a")),), crowded=True)
    assert plan_warm(1, FORM, there) == WarmPlan((there.waiting[0].pod,))
    refused = waits("a", running=False, over=True, reason="OutOfcpu")
    assert plan_warm(1, FORM, WarmFacts((SHOP,), (MAIN,), (Waiting(refused, AGAIN - 1),))) == WarmPlan()
    assert plan_warm(1, FORM, WarmFacts((SHOP,), (MAIN,), (Waiting(refused, AGAIN + 1),))).end == (refused,)


def test_a_pod_that_the_node_had_no_room_for() -> None:
    assert node_is_full(PodFacts("a", over=True, reason="OutOfmemory"))
    assert not node_is_full(PodFacts("a", over=True, reason="Evicted"))
    assert not node_is_full(PodFacts("a", running=True))


@settings(deadline=None)
@given(
    limit=st.integers(0, 3),
    pods=st.lists(
        st.builds(
            waits,
            name=st.text("abcdef", min_size=1, max_size=3),
            kind=st.sampled_from([USUAL.word, BIG.word, "other"]),
            form=st.sampled_from([FORM, "older"]),
            running=st.booleans(),
            over=st.booleans(),
            terminating=st.booleans(),
        ),
        max_size=8,
        unique_by=lambda pod: pod.name,
    ),
)
def test_every_mixture_comes_to_the_number_and_never_above_it(limit: int, pods: list[PodFacts]) -> None:
    there = pods
    for visit in range(4):
        todo = plan_warm(limit, FORM, facts(*there))
        made = [waits(f"new-{visit}-{n}", kind.word) for n, kind in enumerate(todo.make)]
        kept = [pod for pod in there if pod not in todo.end and not pod.terminating]
        for word in {pod.slot_class for pod in made}:
            # With those on their way out, for what the node holds is one account.
            assert sum(pod.slot_class == word for pod in (*there, *made)) <= limit
        there = [*kept, *made]
    assert sorted(pod.slot_class for pod in there) == sorted([USUAL.word, BIG.word] * limit)
    assert plan_warm(limit, FORM, facts(*there)) == WarmPlan()


def test_a_claimed_pod_is_as_one_made_for_the_branch() -> None:
    asked = replace(LARGE, annotations={names.RESTARTED_AT: "2026-01-01T00:00:00Z"})
    pod = warm_pod(HOME, LAYOUT, slot_class_of(SHOP, asked), "s", "true")
    assert names.LABEL_BRANCH_UID not in pod["metadata"]["labels"]
    tests = [step for step in claim_patch(SHOP, asked, "uid") if step["op"] == "test"]
    assert [step["value"] for step in tests] == ["uid", None]
    for step in claim_patch(SHOP, asked, "uid"):
        _, _, place, key = step["path"].split("/") if step["path"].count("/") == 3 else (*[""] * 3, "")
        if step["op"] == "add":
            pod["metadata"][place][key.replace("~1", "/")] = step["value"]
    assert pod == branch_pod(HOME, LAYOUT, SHOP, asked, "s", "true")


def test_what_a_class_is_made_of_and_what_a_form() -> None:
    first = slot_class(SHOP, MAIN)
    for postgres in (
        replace(SHOP.postgres, image="postgres:16"),
        replace(SHOP.postgres, run_as_user=70),
        replace(SHOP.postgres, resources={"limits": {"memory": "1Gi"}}),
        replace(SHOP.postgres, image_pull_secrets=("registry",)),
    ):
        assert slot_class(replace(SHOP, postgres=postgres), MAIN) != first
    assert slot_class(replace(SHOP, name="other", uid="o-uid"), replace(MAIN, uid="o")) == first
    assert template_hash(HOME, LAYOUT, "true") != template_hash(HOME, LAYOUT, "false")
    pod = warm_pod(HOME, LAYOUT, USUAL, "s", "true")
    assert pod["metadata"]["annotations"] == {names.TEMPLATE_HASH: template_hash(HOME, LAYOUT, "true")}
    assert json.dumps(pod).count('"s"') == 2  # its name and its label; its directory is below a path
