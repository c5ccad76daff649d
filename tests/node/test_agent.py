"""What the agent does after changes of a project: real btrfs and Postgres, a fake API server."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import World

from dbranch.agent.branch.facts import Desired
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import read_mounts
from dbranch.agent.volume.effect import ensure_settings
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.errors import ApiError
from dbranch.api.project import parse_project
from dbranch.api.scram import joined_version, render_branch_verifiers, verifier_of
from dbranch.kube.client import path_of

SECRETS = path_of("v1", "secrets", "dbranch-nodes")


def postgres_status(world: World, branch: str) -> tuple[str, str]:
    """Return reason and message of the branch's Postgres."""
    finding = world.branch(branch)["status"]["node"]["postgres"]
    return finding["reason"], finding["message"]


def configure(world: World, **postgres: Any) -> None:
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": postgres}})
    world.run_agent()


def restart(world: World, branch: str, when: str) -> None:
    patch = {"metadata": {"annotations": {names.RESTARTED_AT: when}}}
    world.api.merge(f"{BRANCHES}/shop-{branch}", patch)
    world.run_agent()


def give_passwords(world: World, project: str, password: str) -> dict[str, str]:
    """Write the verifiers' Secret, then its version into the status, as the controller does; return it by role.

    The application's password is `password`, the superuser's begins with it.
    """
    application, superuser = (
        verifier_of(text, b"0123456789abcdef") for text in (password, f"{password} of all")
    )
    keys = {"verifier": application, "superuser": superuser}
    body = {"metadata": {"name": names.verifier_secret_name(project)}}
    body["data"] = {key: base64.b64encode(text.encode()).decode() for key, text in keys.items()}
    with suppress(ApiError):
        world.api.create(SECRETS, body)
    world.api.merge(f"{SECRETS}/{names.verifier_secret_name(project)}", body)
    version = {"status": {"passwordVersion": joined_version(application, superuser)}}
    world.api.merge(f"{PROJECTS}/shop/status", version)
    return {"app": application, "postgres": superuser}


def give_own_verifiers(world: World, project: str, password: str, count: int) -> list[dict[str, str]]:
    """Add verifiers of the passwords of `give_passwords` for so many branches; return them by role."""
    own = [
        (verifier_of(password, salt), verifier_of(f"{password} of all", salt))
        for salt in (bytes([number] * 16) for number in range(count))
    ]
    status = world.api.merge(f"{PROJECTS}/shop/status", {"status": {}})["status"]
    data = {
        "branches": base64.b64encode(
            render_branch_verifiers(status["passwordVersion"], own).encode()
        ).decode()
    }
    world.api.merge(f"{SECRETS}/{names.verifier_secret_name(project)}", {"data": data})
    return [dict(zip(("app", "postgres"), pair, strict=True)) for pair in own]


def stored_passwords(world: World, branch: str) -> dict[object, object]:
    query = "select rolname, rolpassword from pg_authid where rolname in ('app', 'postgres')"
    return dict(world.sql(branch, query))  # type: ignore[arg-type]


def setting(world: World, branch: str, name: str) -> object:
    return world.sql(branch, f"select current_setting('{name}')")[0][0]


def test_parameters_apply_at_once_or_wait_for_a_restart(world: World) -> None:
    world.make_project()
    world.run_agent()
    pods = [pod["metadata"]["uid"] for pod in world.pods()]
    configure(world, parameters={"shared_buffers": "16MB", "work_mem": "7MB"})
    assert postgres_status(world, "main")[0] == "Accepting" and setting(world, "main", "work_mem") == "7MB"
    configure(world, parameters={"shared_buffers": "24MB", "work_mem": "7MB"})
    reason, message = postgres_status(world, "main")
    assert reason == "RestartPending" and "shared_buffers" in message
    assert [pod["metadata"]["uid"] for pod in world.pods()] == pods
    restart(world, "main", "2026-01-01T00:00:00Z")
    assert (
        postgres_status(world, "main")[0] == "Accepting"
        and setting(world, "main", "shared_buffers") == "24MB"
    )
    assert world.branch("main")["status"]["node"]["restartedAt"] == "2026-01-01T00:00:00Z"
    assert [pod["metadata"]["uid"] for pod in world.pods()] != pods


def test_parameters_that_changed_while_a_branch_was_stopped_are_read_at_its_start(world: World) -> None:
    world.make_project()
    world.run_agent()
    world.patch_spec("main", state="Stopped")
    world.run_agent()
    configure(world, parameters={"shared_buffers": "24MB"})
    world.patch_spec("main", state="Running")
    world.run_agent()
    assert setting(world, "main", "shared_buffers") == "24MB"
    assert postgres_status(world, "main")[0] == "Accepting"


def test_parameters_that_keep_postgres_from_starting_are_corrected_while_a_branch_is_stopped(
    world: World,
) -> None:
    world.make_project()
    world.run_agent()
    configure(world, parameters={"shared_buffers": "16MB", "max_wal_senders": "3", "wal_level": "minimal"})
    world.patch_spec("main", state="Stopped")
    world.run_agent()
    configure(world, parameters={"shared_buffers": "24MB", "max_wal_senders": None, "wal_level": None})
    world.patch_spec("main", state="Running")
    world.run_agent()
    assert (
        postgres_status(world, "main")[0] == "Accepting"
        and setting(world, "main", "shared_buffers") == "24MB"
    )
    # The first Postgres that was started read them: none of a wrong start is in the slot's log. A session that came
    # before Postgres accepted any is refused with FATAL, too.
    slot = world.branch("main")["status"]["node"]["slot"]
    refused_early = (
        "the database system is starting up",
        "the database system is not yet accepting connections",
    )
    fatal = [line for line in world.node.stderr_of(slot).splitlines() if "FATAL" in line]
    assert not [line for line in fatal if not any(text in line for text in refused_early)]


def test_settings_that_a_killed_agent_wrote_and_never_had_loaded_are_loaded(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    body = world.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": {"parameters": {"work_mem": "7MB"}}}})
    desired = Desired(parse_project(body), parse_branch(world.branch("main")))
    assert ensure_settings(world.node.layout, project, world.uid("main"), desired.settings)
    assert setting(world, "main", "work_mem") != "7MB"
    world.run_agent()
    assert setting(world, "main", "work_mem") == "7MB"
    # Once: an agent that finds them loaded has nothing to do.
    world.run_agent()
    assert not [effect for effect in world.effects if "pg_hba" in effect or "postgresql.conf" in effect]


def test_a_parameter_that_postgres_does_not_know_disturbs_nothing_that_runs(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.make_branch("copy", "main")
    world.run_agent()
    configure(world, parameters={"work_mem": "7MB", "no_such_setting": "1"})
    for branch in ("main", "copy"):
        assert (
            postgres_status(world, branch)[0] == "SettingsRejected"
            and setting(world, branch, "work_mem") != "7MB"
        )
        assert "no_such_setting = 1 (unrecognized" in postgres_status(world, branch)[1]
    # A copy whose Postgres does not take its settings any more is opened all the same.
    files = world.node.layout.branch(project, world.uid("copy"))
    marker = json.loads((files / "marker.json").read_text())
    (files / "marker.json").write_text(json.dumps({**marker, "opened": False}))
    world.run_agent()
    assert json.loads((files / "marker.json").read_text())["opened"] is True
    configure(world, parameters={"work_mem": "7MB", "no_such_setting": None})
    for branch in ("main", "copy"):
        assert setting(world, branch, "work_mem") == "7MB"
        assert postgres_status(world, branch)[0] == "Accepting"
    # One that dbranch itself rejects: what runs is not taken out of service.
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": {"parameters": {"port": "1"}}}})
    world.run_rounds()
    assert postgres_status(world, "main")[0] == "SettingsRejected"
    assert world.branch("main")["status"]["node"]["address"]


def test_a_branch_of_the_first_release_is_opened_once_more_and_never_closed(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.make_branch("copy", "main")
    world.run_agent()
    pods = [pod["metadata"]["uid"] for pod in world.pods()]
    for branch in ("main", "copy"):
        files = world.node.layout.branch(project, world.uid(branch))
        marker = json.loads((files / "marker.json").read_text())
        assert marker.pop("opened") is True
        # A marker of the first release says neither.
        assert marker.pop("superuser") == "postgres" and marker.pop("initdb_settings")
        (files / "marker.json").write_text(json.dumps(marker))
    hba = [world.node.layout.branch(project, world.uid(b)) / "pg_hba.conf" for b in ("main", "copy")]
    before = [path.stat().st_ino for path in hba]
    world.run_agent()
    for branch, path in zip(("main", "copy"), hba, strict=True):
        assert json.loads((path.parent / "marker.json").read_text())["opened"] is True
        assert postgres_status(world, branch)[0] == "Accepting"
    assert [path.stat().st_ino for path in hba] == before
    assert [pod["metadata"]["uid"] for pod in world.pods()] == pods


def test_an_image_of_another_major_version_starts_nothing(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.patch_spec("main", state="Stopped")
    world.run_agent()
    version = world.node.layout.branch(project, world.uid("main")) / "pgdata" / "PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    world.patch_spec("main", state="Running")
    world.run_agent()
    reason, message = postgres_status(world, "main")
    assert reason == "ImageIncompatible" and f"PostgreSQL {right.strip()}" in message
    blocked = world.pods()[0]["metadata"]["uid"]
    configure(world, image="postgres:another")
    assert postgres_status(world, "main")[0] == "ImageIncompatible"
    assert world.pods()[0]["metadata"]["uid"] != blocked
    # The slot's script checks again by itself; so does the agent's timer.
    version.write_text(right)
    for _ in range(10):
        world.run_agent()
        if postgres_status(world, "main")[0] == "Accepting":
            break
    assert postgres_status(world, "main")[0] == "Accepting"


def test_new_passwords_reach_every_branch(world: World) -> None:
    project = world.make_project()
    first = give_passwords(world, project, "first")
    world.run_agent()
    for name in ("running", "stopped"):
        world.make_branch(name, "main")
    world.run_agent()
    assert [stored_passwords(world, b) for b in ("main", "running", "stopped")] == 3 * [first]
    world.patch_spec("stopped", state="Stopped")
    world.run_agent()
    second = give_passwords(world, project, "second")
    world.run_agent()
    assert [stored_passwords(world, b) for b in ("main", "running")] == 2 * [second]
    world.patch_spec("stopped", state="Running")
    world.make_branch("second", "running")
    world.run_agent()
    assert [stored_passwords(world, b) for b in ("stopped", "second")] == 2 * [second]


def test_each_branch_gets_verifiers_of_its_own_once_it_serves(world: World) -> None:
    project = world.make_project()
    projects = give_passwords(world, project, "first")
    own = give_own_verifiers(world, project, "first", 3)
    world.run_agent()
    world.make_branch("copy", "main")
    world.run_agent()
    assert [stored_passwords(world, b) for b in ("main", "copy")] == own[:2]
    world.run_agent()
    assert not [effect for effect in world.effects if "alter role" in effect]
    # Those of another branch, or of the project, are as wrong as those of a dump.
    for verifiers in (own[0], projects):
        for role, verifier in verifiers.items():
            world.sql("copy", f"alter role {role} password '{verifier}'")
        world.run_agent()
        assert stored_passwords(world, "copy") == own[1]
    # Where there are none left, the source's stay, until a branch that is gone has left its own.
    for name in ("third", "fourth"):
        world.make_branch(name, "main")
        world.run_agent()
    assert [stored_passwords(world, b) for b in ("third", "fourth")] == [own[2], own[0]]
    world.delete_branch("copy")
    world.run_agent()
    assert stored_passwords(world, "fourth") == own[1]
    second = give_passwords(world, project, "second")
    world.run_agent()
    assert stored_passwords(world, "main") == second
    renewed = give_own_verifiers(world, project, "second", 3)
    world.run_agent()
    kept = [stored_passwords(world, b) for b in ("main", "third", "fourth")]
    assert all(verifiers in kept for verifiers in renewed)


def test_a_password_that_a_dump_has_changed_is_set_again(world: World) -> None:
    project = world.make_project()
    right = give_passwords(world, project, "right")
    world.run_agent()
    for role in right:
        world.sql("main", f"alter role {role} password 'of the dump'")
    world.run_agent()
    assert stored_passwords(world, "main") == right
    world.sql("main", "alter role app password null")
    world.run_agent()
    assert stored_passwords(world, "main") == right
    # Once: with the right passwords there is nothing to do.
    world.run_agent()
    assert not [effect for effect in world.effects if "alter role" in effect]


def test_a_dropped_role_of_the_application_is_reported_and_can_be_created_again(world: World) -> None:
    project = world.make_project()
    right = give_passwords(world, project, "right")
    world.run_agent()
    world.sql("main", "alter database dbranch owner to postgres")
    world.sql("main", "drop role app")
    world.run_rounds()
    reason, message = postgres_status(world, "main")
    assert reason == "RoleNotFound" and "no role app" in message and "--superuser" in message
    # Whoever repairs it has to reach it.
    assert world.branch("main")["status"]["node"]["address"]
    assert stored_passwords(world, "main") == {"postgres": right["postgres"]}
    world.sql("main", "create role app login")
    world.run_agent()
    assert postgres_status(world, "main")[0] == "Accepting" and stored_passwords(world, "main") == right


def test_a_stopped_branch_can_be_a_source(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select 1 as id")
    world.patch_spec("main", state="Stopped")
    world.run_agent()
    world.make_branch("copy", "main")
    world.run_agent()
    assert world.sql("copy", "select id from item") == [(1,)]
    world.assert_consistent(project, running=1, stored=2)


def test_a_new_project_adopts_a_retained_pool(world: World) -> None:
    old = world.make_project(deletionPolicy="Retain")
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 5000) as id")
    world.make_branch("feature", "main")
    world.make_branch("forgotten", "main")
    world.run_agent()
    world.sql("feature", "delete from item where id > 10")
    old_feature_uid = world.uid("feature")
    world.delete_project()
    image = world.node.layout.image(old)
    assert image.exists() and loops_of(image) == () and world.api.find(PODS) == []
    assert [m.point for m in read_mounts() if m.point.startswith(f"{world.node.layout.base}/")] == []
    new = world.make_project(storage={"adopt": old})
    world.run_agent()
    assert world.sql("main", "select count(*), sum(id) from item") == [(5000, 12502500)]
    world.make_branch("feature", "main")
    world.make_branch("new", "main")
    world.run_agent()
    assert world.sql("feature", "select count(*) from item") == [(10,)]
    assert world.sql("new", "select count(*) from item") == [(5000,)]
    assert world.uid("feature") != old_feature_uid
    # The branch without an object is still stored; the image has the new project's name.
    world.assert_consistent(new, running=3, stored=4)
    assert not image.exists() and not world.node.layout.record(old).exists()
