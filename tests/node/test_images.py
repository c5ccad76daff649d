"""The image that runs is the one that was meant: by its digest where it has one, and a changed one is reported."""

from __future__ import annotations

from tests.fakes.api import Json
from tests.node.agent_life import PODS, PROJECTS
from tests.node.test_agent import configure, postgres_status, restart
from tests.node.world import World

from dbranch.agent.volume.observe import observe_marker

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
PULLED = f"docker.io/library/postgres@{OLD}"


def node_status(world: World) -> Json:
    body = world.api.get(f"{PROJECTS}/shop")
    assert body
    return dict(body["status"]["node"])


def images(world: World) -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in world.api.find(PODS)}


def test_an_image_that_was_pulled_is_pinned_from_initdb_on(world: World) -> None:
    world.kubelet.image_id = PULLED
    project = world.make_project()
    world.run_agent()
    assert images(world) == {f"postgres@{OLD}"}, "a pod uses the tag, which may move"
    assert postgres_status(world, "main")[0] == "Accepting" and len(world.warm_pods()) == 1
    status = node_status(world)
    assert (status["image"], status["imageID"], status["imageDigest"]) == ("postgres:17", PULLED, OLD)
    policies = {pod["spec"]["containers"][0].get("imagePullPolicy") for pod in world.api.find(PODS)}
    assert policies == {"IfNotPresent"}
    warm = world.warm_pods()[0]["metadata"]["uid"]
    world.make_branch("copy", "main")
    world.run_agent()
    assert warm in {pod["metadata"]["uid"] for pod in world.pods()}
    marker = observe_marker(world.node.layout, project, world.uid("copy"))
    assert marker and getattr(marker, "image", None) == OLD
    # Somebody who means another image says so.
    world.kubelet.image_id = f"docker.io/library/postgres@{NEW}"
    configure(world, image="postgres:17.9")
    assert postgres_status(world, "copy")[0] == "RestartPending"
    restart(world, "copy", "2026-01-01T00:00:00Z")
    assert postgres_status(world, "copy")[0] == "Accepting"
    assert (node_status(world)["image"], node_status(world)["imageDigest"]) == ("postgres:17.9", NEW)


def test_pods_of_a_release_that_knew_only_tags_run_on_and_stay_warm(world: World) -> None:
    world.make_project()
    world.run_agent()
    before = {pod["metadata"]["uid"] for pod in world.api.find(PODS)}
    assert images(world) == {"postgres:17"} and "image" not in node_status(world)
    for pod in world.api.find(PODS):
        status = {"containerStatuses": [{**pod["status"]["containerStatuses"][0], "imageID": PULLED}]}
        world.api.merge(f"{PODS}/{pod['metadata']['name']}/status", {"status": status})
    world.kubelet.image_id = PULLED
    world.run_agent()
    assert node_status(world)["imageID"] == PULLED and postgres_status(world, "main")[0] == "Accepting"
    assert {pod["metadata"]["uid"] for pod in world.api.find(PODS)} == before, "pods were replaced"
    # What is claimed next is warm; what is made next has the digest.
    world.make_branch("copy", "main")
    world.run_agent()
    assert images(world) == {"postgres:17", f"postgres@{OLD}"}
    assert postgres_status(world, "copy")[0] == "Accepting"


def test_a_loaded_image_that_changes_is_reported_with_the_collations_that_it_changes(world: World) -> None:
    """As after `kind load` of another build under the same tag: it has no digest that can be pulled."""
    world.kubelet.image_id = OLD
    world.make_project()
    world.run_agent()
    assert images(world) == {"postgres:17"}
    world.sql("main", "create collation german (provider = icu, locale = 'de')")
    world.sql("main", "create collation unused (provider = icu, locale = 'fr')")
    world.sql("main", "create table word (text text collate german primary key)")
    world.sql("main", "update pg_collation set collversion = '0.9' where collname in ('german', 'unused')")
    world.kubelet.image_id = NEW
    restart(world, "main", "2026-01-01T00:00:00Z")
    reason, message = postgres_status(world, "main")
    assert reason == "ImageChanged", "an image with another order of text runs, and nothing says so"
    assert "aaaaaaaaaaaa" in message and "bbbbbbbbbbbb" in message
    assert "german" in message and "unused" not in message and "REINDEX" in message and len(message) <= 256
    assert world.sql("main", "select 1") == [(1,)] and world.branch("main")["status"]["node"]["address"]
    # The warm slot is of the old image, the one behind it of the new: a copy has the same indexes.
    world.make_branch("of-old-image", "main")
    world.run_agent()
    assert postgres_status(world, "of-old-image")[0] == "Accepting"
    world.make_branch("copy", "main")
    world.run_agent()
    world.run_rounds()
    assert postgres_status(world, "copy")[0] == "ImageChanged"
    world.sql("main", "reindex table word")
    world.sql("main", "alter collation german refresh version")
    world.run_agent()
    reason, message = postgres_status(world, "main")
    assert reason == "ImageChanged" and "no collation differs" in message
    # The change is meant once somebody gives it a name.
    configure(world, image="postgres:17-new")
    restart(world, "main", "2026-01-03T00:00:00Z")
    assert postgres_status(world, "main")[0] == "Accepting"
    assert node_status(world)["image"] == "postgres:17-new" and node_status(world)["imageDigest"] == NEW
