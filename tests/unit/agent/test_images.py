"""Which image a pod gets, which pods count as of its class, and what is said of another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.agent.branch_model import COPY, PROJECT, ROOMY, VERSION, marker

from dbranch.agent.branch.facts import BranchFacts
from dbranch.agent.branch.plan import plan_branch
from dbranch.agent.slot.image_ref import pinned
from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.warm.plan import WarmFacts, WarmPlan, WarmPodFacts, plan_warm, warm_count
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.project import Project, ProjectNode

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
PULLED = f"docker.io/library/postgres@{OLD}"


def recorded(image_id: str, image: str = "postgres:17") -> Project:
    """Return the project with the image that its spec's was when it ran first."""
    return replace(PROJECT, node=ProjectNode(pool_uuid="u", initialized=True, image=image, image_id=image_id))


@pytest.mark.parametrize(
    ("image", "image_id", "reference"),
    [
        ("postgres:17", PULLED, f"postgres@{OLD}"),
        ("postgres:17", f"docker-pullable://postgres@{OLD}", f"postgres@{OLD}"),
        ("docker.io/library/postgres", PULLED, f"docker.io/library/postgres@{OLD}"),
        (
            "registry:5000/pg/postgres:17",
            f"registry:5000/pg/postgres@{OLD}",
            f"registry:5000/pg/postgres@{OLD}",
        ),
        ("localhost/pg:17", f"localhost/pg@{OLD}", f"localhost/pg@{OLD}"),
        # It was pulled under another name, or loaded: by this digest it may not be found anywhere.
        ("postgres:17", f"quay.io/library/postgres@{OLD}", "postgres:17"),
        ("postgres:17", f"docker.io/library/import-2026-01-01@{OLD}", "postgres:17"),
        ("postgres:17", OLD, "postgres:17"),
        ("postgres:17", "", "postgres:17"),
        ("postgres:17", "docker.io/library/postgres@what", "postgres:17"),
        (f"postgres@{NEW}", PULLED, f"postgres@{NEW}"),
    ],
)
def test_an_image_is_pinned_where_its_digest_can_be_pulled(image: str, image_id: str, reference: str) -> None:
    assert pinned(image, image_id) == reference


def test_the_image_of_another_spec_is_not_that_of_this_one() -> None:
    assert slot_class_of(recorded(PULLED)).pod_image == f"postgres@{OLD}"
    assert slot_class_of(recorded(PULLED, image="postgres:16")).pod_image == "postgres:17"
    # A class that is not pinned has the same label as in the first release, so that its pods run on.
    unpinned = slot_class_of(recorded(OLD))
    assert unpinned.class_hash == slot_class_of(PROJECT).class_hash and len(unpinned.hashes) == 1


def pod_of(slot_class: SlotClass, image_id: str | None, name: str = "slot-a") -> PodFacts:
    return PodFacts(
        name,
        image=slot_class.pod_image,
        class_hash=slot_class.class_hash,
        template_hash="t",
        running=True,
        image_id=image_id,
    )


TAG, PINNED = slot_class_of(PROJECT), slot_class_of(recorded(PULLED))


def test_a_pod_that_was_made_by_the_tag_is_of_the_class_with_the_digest_if_it_runs_that() -> None:
    for image_id, included in ((PULLED, True), (OLD, True), (None, True), (NEW, False)):
        assert PINNED.includes(pod_of(TAG, image_id)) == included
    assert PINNED.includes(pod_of(PINNED, PULLED)) and not TAG.includes(pod_of(PINNED, PULLED))
    # Without a digest that can be pulled the tag is all there is: whatever it is now.
    assert slot_class_of(recorded(OLD)).includes(pod_of(TAG, NEW))


def test_warm_pods_stay_when_the_digest_becomes_known_and_those_of_another_image_go() -> None:
    same, other = pod_of(TAG, PULLED, "same"), pod_of(TAG, NEW, "other")
    facts = WarmFacts((recorded(PULLED),), (WarmPodFacts(same),))
    assert plan_warm(1, 9, "t", facts) == WarmPlan()
    assert warm_count(1, "t", facts, recorded(PULLED)) == 1
    facts = WarmFacts((recorded(PULLED),), (WarmPodFacts(other),))
    assert plan_warm(1, 9, "t", facts).delete == (other,)
    assert warm_count(1, "t", facts, recorded(PULLED)) == 0
    # A loaded image that has changed makes no pod come and go for ever.
    facts = WarmFacts((recorded(OLD),), (WarmPodFacts(other),))
    assert plan_warm(1, 9, "t", facts) == WarmPlan()


def finding_of(
    project: Project, pod: PodFacts, collations: tuple[str, ...] | None = None, image: str = OLD
) -> Finding:
    stored = replace(marker(COPY), password=VERSION, opened=True, image=image)
    facts = BranchFacts(
        True,
        ROOMY,
        stored,
        (pod,),
        bound_slots=(pod.name,),
        server_version="17.6",
        outdated_collations=collations,
    )
    finding = plan_branch(project, COPY, facts).postgres
    assert finding and finding.done and len(finding.message) <= MESSAGE_LIMIT
    return finding


def test_what_is_said_of_the_image_that_runs() -> None:
    assert finding_of(PROJECT, pod_of(TAG, OLD)).reason == Reason.ACCEPTING
    assert finding_of(recorded(PULLED), pod_of(TAG, PULLED)).reason == Reason.ACCEPTING
    assert finding_of(recorded(OLD), pod_of(TAG, OLD)).reason == Reason.ACCEPTING
    changed = finding_of(recorded(OLD), pod_of(TAG, NEW))
    assert changed.reason == Reason.IMAGE_CHANGED and "no collation differs" in changed.message
    assert "runs bbbbbbbbbbbb as image postgres:17, not aaaaaaaaaaaa" in changed.message
    # By its digest the next start has the right one.
    pending = finding_of(recorded(PULLED), pod_of(TAG, NEW))
    assert pending.reason == Reason.RESTART_PENDING and "new image" in pending.message
    meant = finding_of(recorded(PULLED, image="postgres:16"), pod_of(PINNED, PULLED))
    assert meant.reason == Reason.RESTART_PENDING and "new image" in meant.message


def test_collations_that_differ_are_named_also_if_the_image_was_meant() -> None:
    names = ("database app", "app: german")
    for project in (recorded(NEW), recorded(OLD), PROJECT):
        finding = finding_of(project, pod_of(TAG, NEW), names)
        assert finding.reason == Reason.IMAGE_CHANGED and "database app, app: german" in finding.message
        assert finding.message.endswith("REFRESH VERSION") and "aaaaaaaaaaaa" in finding.message
    many = finding_of(recorded(OLD), pod_of(TAG, NEW), tuple(f"database {'x' * 40}{n}" for n in range(20)))
    assert many.message.endswith("REFRESH VERSION") and "…" in many.message and "bbbbbbbbbbbb" in many.message
    assert "an unknown one" in finding_of(PROJECT, pod_of(TAG, NEW), names, image="").message
