"""The application is no superuser; the superuser has a Secret of its own; clients of all kinds are let in."""

from __future__ import annotations

from tests.e2e.cluster import NODES, Project, eventually


def superuser_uri(project: Project, branch: str | None = None) -> str:
    arguments = ["url", *([branch] if branch else []), "--superuser"]
    return project.team.dbranch("-p", project.name, *arguments).text


def test_the_application_owns_its_database_and_is_no_superuser(shop: Project) -> None:
    assert shop.sql(
        "select current_user, rolsuper, rolcreatedb from pg_roles where rolname = current_user"
    ) == ("app|f|t")
    assert (
        shop.sql("select pg_get_userbyid(datdba) from pg_database where datname = current_database()")
        == "app"
    )
    # As with the image's own initdb, not `simple`.
    assert shop.sql("select to_tsvector('running shoes') @@ to_tsquery('run')") == "t"
    refused = shop.team.psql(shop.uri(), "alter system set work_mem = '1MB'", check=False)
    assert refused.code == 1 and "permission denied" in refused.err
    secret = shop.team.secret("shop-superuser-conn")
    assert secret["username"] == "postgres" and shop.team.sql(secret["uri"], "show is_superuser") == "on"


def test_the_connections_that_are_kept_for_superusers_are_not_the_applications(shop: Project) -> None:
    shop.branch(
        "full", postgres={"parameters": {"max_connections": "6", "superuser_reserved_connections": "3"}}
    )
    application, superuser = shop.uri("full"), superuser_uri(shop, "full")
    script = f"""
      for i in $(seq 8); do
        (while :; do psql '{application}' -Xqc 'select pg_sleep(60)'; sleep 0.1; done) >/dev/null 2>&1 &
      done
      for i in $(seq 100); do
        refused=$(psql '{application}' -Xqc 'select 1' 2>&1)
        [[ $refused == *reserved* ]] && psql '{superuser}' -XAtqc "select 'let in'" && kill $(jobs -p) && exit
        sleep 0.2
      done
    """
    reached = shop.team.kubectl("exec", "client", "--", "bash", "-c", script)
    assert reached.text == "let in", reached.output
    shop.discard("full")


def test_each_branch_has_verifiers_with_a_salt_of_its_own_and_one_password_for_all(shop: Project) -> None:
    shop.branch("salted")
    query = "select rolname, rolpassword from pg_authid where rolname in ('app', 'postgres') order by 1"

    def salts() -> set[str]:
        """Return the salts of both roles on both branches."""
        verifiers = [
            line.split("|")[1]
            for branch in ("main", "salted")
            for line in shop.team.sql(superuser_uri(shop, branch), query).splitlines()
        ]
        return {verifier.split("$")[1] for verifier in verifiers}

    # Soon after the branch is ready, and without a restart.
    eventually("four salts", lambda: len(salts()) == 4)
    assert shop.sql("select current_user", "salted") == shop.sql("select current_user", "main") == "app"
    shop.discard("salted")


def test_a_password_that_a_dump_changed_is_set_again(shop: Project) -> None:
    shop.branch("dumped")
    uri = shop.uri("dumped")
    shop.sql("alter role app password 'of the dump'", "dumped")
    refused = shop.team.psql(uri, "select 1", check=False)
    assert refused.code == 2 and "authentication failed" in refused.err
    request = "agent.dbranch.io/requestedAt=now"
    shop.team.kubectl("annotate", "dbbranch", "shop-dumped", request, "--overwrite")
    eventually(
        "the Secret's password is right again", lambda: shop.team.psql(uri, "select 1", check=False).code == 0
    )
    shop.discard("dumped")


def test_roles_with_md5_hashes_and_physical_replication_are_let_in(shop: Project) -> None:
    shop.branch("clients")
    superuser = superuser_uri(shop, "clients")
    create = "set password_encryption = md5; create role standby login replication password 'secret'"
    shop.team.sql(superuser, create)
    host = f"host=shop-clients.{shop.team.name}.svc user=standby password=secret"
    assert shop.team.sql(f"{host} dbname=dbranch", "select current_user") == "standby"
    backup = f"pg_basebackup -d '{host}' -D /tmp/backup -X stream -c fast && cat /tmp/backup/PG_VERSION"
    assert shop.team.kubectl("exec", "client", "--", "sh", "-c", backup).text
    shop.discard("clients")


def test_a_client_in_the_pod_that_names_no_host_finds_the_branch(shop: Project) -> None:
    shop.branch("inside")
    exec_in = ("exec", "-n", NODES, shop.pod_of("inside"), "--")
    psql = (*exec_in, "psql", "-XAtqd", "dbranch", "-c")
    assert shop.team.cluster.kubectl(*psql, "show port").text == str(shop.status("inside")["node"]["port"])
    query = "create extension dblink; select p from dblink('dbname=dbranch', 'show port') as t (p text)"
    shop.team.cluster.kubectl(*psql, query)
    # Another host is reached at libpq's port, not at the branch's.
    refused = shop.team.cluster.kubectl(*psql, "select dblink_connect('host=127.0.0.1')", check=False)
    assert "port 5432 failed" in refused.err
    shop.discard("inside")


def test_a_dump_is_loaded_by_the_superuser_for_the_application(shop: Project) -> None:
    shop.branch("loaded")
    dump = "create extension dblink; create table of_the_dump as select 1 as id;"
    shop.team.dbranch("-p", "shop", "load", "-", "loaded", stdin=dump)
    owners = (
        "select tableowner, pg_get_userbyid(extowner) from pg_tables, pg_extension"
        " where tablename = 'of_the_dump' and extname = 'dblink'"
    )
    assert shop.sql(owners, "loaded") == "app|postgres"
    assert shop.sql("select rolsuper from pg_roles where rolname = 'app'", "loaded") == "f"
    psql = shop.team.dbranch(
        "-p", "shop", "psql", "loaded", "--superuser", "--", "-XAtqc", "show is_superuser"
    )
    assert psql.text == "on"
    shop.discard("loaded")
