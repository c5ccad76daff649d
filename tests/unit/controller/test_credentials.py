"""The Secrets of a project: the application's, the superuser's, and the verifiers of both."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from tests.factories import branch, project
from tests.unit.controller.rig import Rig

from dbranch.api import names
from dbranch.api.scram import is_verifier_of, parse_branch_verifiers, split_version, version_of
from dbranch.api.secrets import secret_texts
from dbranch.controller.credentials import _Password, _Passwords
from dbranch.controller.manifests import Release, verifier_secret
from dbranch.kube.client import path_of

SECRETS = path_of("v1", "secrets", "team")
CONN, SUPERUSER = f"{SECRETS}/shop-conn", f"{SECRETS}/shop-superuser-conn"
PROJECTS = path_of(names.API_VERSION, names.PROJECTS, "team")
VERIFIERS = path_of("v1", "secrets", "dbranch-nodes", "verifier-shop-uid")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def agent_names_superuser(rig: Rig, role: str) -> None:
    rig.api.merge(f"{PROJECTS}/shop/status", {"status": {"node": {"superuser": role}}})


def test_the_application_and_the_superuser_have_a_secret_and_a_password_each(rig: Rig) -> None:
    rig.put(project())
    status = rig.reconcile_project()["status"]
    application, superuser = secret_texts(rig.existing(CONN)), secret_texts(rig.existing(SUPERUSER))
    assert (application["username"], superuser["username"]) == ("app", "postgres")
    assert application["password"] != superuser["password"]
    other = ("username", "password", "uri")
    assert {k: v for k, v in application.items() if k not in other} == {
        k: v for k, v in superuser.items() if k not in other
    }
    assert superuser["uri"] == f"postgresql://postgres:{superuser['password']}@shop.team.svc:5432/dbranch"
    verifiers = secret_texts(rig.existing(VERIFIERS))
    assert is_verifier_of(verifiers["verifier"], application["password"])
    assert is_verifier_of(verifiers["superuser"], superuser["password"])
    assert split_version(status["passwordVersion"]) == (
        version_of(verifiers["verifier"]),
        version_of(verifiers["superuser"]),
    )
    rig.start()
    rig.reconcile_project(bypass_cache=True)
    assert rig.writes_of(lambda: rig.reconcile_project(bypass_cache=True)) == []
    assert secret_texts(rig.existing(SUPERUSER)) == superuser


def test_an_application_that_is_the_superuser_by_name_has_one_password(rig: Rig) -> None:
    rig.put(project().spec(postgres={"user": "postgres"}))
    status = rig.reconcile_project()["status"]
    application, superuser = secret_texts(rig.existing(CONN)), secret_texts(rig.existing(SUPERUSER))
    assert application == superuser and application["username"] == "postgres"
    verifiers = secret_texts(rig.existing(VERIFIERS))
    assert "superuser" not in verifiers and status["passwordVersion"] == version_of(verifiers["verifier"])


def test_a_project_of_the_first_release_gets_its_superusers_secret_when_the_agent_has_named_it(
    rig: Rig,
) -> None:
    old = {"initialized": True, "poolUUID": "u"}
    rig.put(project().spec(postgres={"user": "alice"}).bound().node(**old))
    version = rig.reconcile_project()["status"]["passwordVersion"]
    # Nobody knows yet who the superuser is: nothing is guessed, and the password stays.
    assert not rig.exists(SUPERUSER) and len(split_version(version)) == 1
    agent_names_superuser(rig, "alice")
    assert rig.reconcile_project()["status"]["passwordVersion"] == version
    assert secret_texts(rig.existing(SUPERUSER)) == secret_texts(rig.existing(CONN))


def test_adopted_data_of_the_first_release_keeps_its_superuser_beside_a_new_application(rig: Rig) -> None:
    rig.put(project().spec(storage={"adopt": "0f5b3b0c-9d0e-4b52-8d4c-5f8d3c1b2a19"}).bound())
    rig.reconcile_project()
    assert not rig.exists(SUPERUSER)
    agent_names_superuser(rig, "alice")
    version = rig.reconcile_project()["status"]["passwordVersion"]
    assert secret_texts(rig.existing(SUPERUSER))["username"] == "alice" and len(split_version(version)) == 2


def test_a_superusers_password_that_was_changed_in_its_secret_becomes_its_password(rig: Rig) -> None:
    rig.put(project())
    before = rig.reconcile_project()["status"]["passwordVersion"]
    rig.api.merge(SUPERUSER, {"data": {"password": "cGVuY2ls"}})
    after = rig.reconcile_project(bypass_cache=True)["status"]["passwordVersion"]
    assert split_version(after)[0] == split_version(before)[0] and after != before
    assert "postgres:pencil@" in secret_texts(rig.existing(SUPERUSER))["uri"]
    assert is_verifier_of(secret_texts(rig.existing(VERIFIERS))["superuser"], "pencil")


def test_the_superusers_secret_of_another_owner_is_left_alone_and_reported(rig: Rig) -> None:
    rig.secret("shop-superuser-conn", password="cGVuY2ls")
    rig.put(project())
    body = rig.reconcile_project()
    routed = next(c for c in body["status"]["conditions"] if c["type"] == "Routed")
    assert routed["reason"] == "NameTaken" and "shop-superuser-conn" in routed["message"]
    assert secret_texts(rig.existing(SUPERUSER)) == {"password": "pencil"}


def own_verifiers(rig: Rig) -> tuple[tuple[str, ...], ...]:
    version = rig.project("shop")["status"]["passwordVersion"]
    return parse_branch_verifiers(secret_texts(rig.existing(VERIFIERS)).get("branches"), version)


def test_there_are_verifiers_with_a_salt_of_its_own_for_each_branch_and_for_the_next(rig: Rig) -> None:
    rig.put(project())
    version = rig.reconcile_project()["status"]["passwordVersion"]
    passwords = [secret_texts(rig.existing(path))["password"] for path in (CONN, SUPERUSER)]
    first = own_verifiers(rig)
    assert len(first) == 8
    for own in first:
        assert [is_verifier_of(*pair) for pair in zip(own, passwords, strict=True)] == [True, True]
    texts = [verifier for own in first for verifier in own]
    texts += [secret_texts(rig.existing(VERIFIERS))[key] for key in ("verifier", "superuser")]
    assert len({text.split("$")[1] for text in texts}) == len(texts), "two have one salt"
    # No branch costs a write, but for one in eight; the password is the same.
    rig.put(*(branch(f"b{number}") for number in range(3)))
    assert not [write for write in rig.writes_of(rig.reconcile_project) if "verifier" in write]
    rig.put(branch("b3"))
    assert rig.reconcile_project()["status"]["passwordVersion"] == version
    assert own_verifiers(rig)[:8] == first and len(own_verifiers(rig)) == 16
    # A controller that begins anew takes them as they are.
    rig.start()
    rig.reconcile_project(bypass_cache=True)
    assert own_verifiers(rig)[:8] == first and len(own_verifiers(rig)) == 16


def client_key_after_login(verifier: str, password: str) -> bytes:
    """Return what the server with this verifier knows of the client's key after one login (RFC 5802, section 3)."""
    iterations_and_salt, keys = verifier.removeprefix("SCRAM-SHA-256$").split("$")
    iterations, salt = iterations_and_salt.split(":")
    stored, auth_message = base64.b64decode(keys.split(":")[0]), b"n=,r=nonces,s=salt,i=4096"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    # What the client sends: its key, hidden by what only who has StoredKey can compute.
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(stored, auth_message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return bytes(a ^ b for a, b in zip(proof, signature, strict=True))


def test_who_saw_a_login_to_one_branch_logs_in_to_no_other(rig: Rig) -> None:
    rig.put(project())
    rig.reconcile_project()
    password = secret_texts(rig.existing(CONN))["password"]
    projects, own = (
        secret_texts(rig.existing(VERIFIERS))["verifier"],
        [pair[0] for pair in own_verifiers(rig)],
    )
    key = client_key_after_login(own[0], password)
    stored = base64.b64encode(hashlib.sha256(key).digest()).decode()
    assert [f"${stored}:" in verifier for verifier in (*own, projects)] == [True, *(len(own) * [False])]


def test_with_another_password_all_verifiers_are_others(rig: Rig) -> None:
    rig.put(project())
    rig.reconcile_project()
    before = {own[0] for own in own_verifiers(rig)}
    rig.api.merge(CONN, {"data": {"password": "cGVuY2ls"}})
    rig.reconcile_project(bypass_cache=True)
    after = {own[0] for own in own_verifiers(rig)}
    assert len(after) == 8 and not after & before and all(is_verifier_of(text, "pencil") for text in after)


def test_an_application_that_is_the_superuser_has_one_verifier_for_each_branch(rig: Rig) -> None:
    rig.put(project().spec(postgres={"user": "postgres"}))
    rig.reconcile_project()
    assert {len(own) for own in own_verifiers(rig)} == {1}


def test_a_secret_holds_the_verifiers_of_a_thousand_branches(rig: Rig) -> None:
    secret = _Password(("s", "k"), "pencil", "v")
    stock = _Passwords(secret, secret, (("v" * 134, "v" * 134),) * 1024).with_verifiers_for(5000)
    assert len(stock.of_branches) == 1024
    shop = project().parsed()
    body = verifier_secret(shop, Release("dbranch", "nodes", "image"), "v", "v", stock.of_branches)
    assert len(json.dumps(body)) < 2**19
