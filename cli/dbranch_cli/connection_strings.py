"""Connection strings out of the `…-conn` Secrets: whose, for where, and in which form. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from dbranch_cli.failure import ExitCode, Failure


def as_superuser(secret: Mapping[str, str], superuser: Mapping[str, str]) -> dict[str, str]:
    """Return a `…-conn` Secret with the superuser's name and password."""
    as_user = {**secret, "username": superuser["username"], "password": superuser["password"]}
    uris = {key: _with_user(secret[key], as_user) for key in ("uri", "external-uri") if key in secret}
    return {**as_user, **uris}


def as_external(secret: Mapping[str, str], project: str) -> dict[str, str]:
    """Return a `…-conn` Secret with the host, port and URI for clients outside of the cluster.

    `options`: what names the branch to the proxy, if it is a branch's. Raises Failure without an external host.
    """
    if "external-uri" not in secret:
        message = (
            f"project {project} has no address outside of the cluster; set spec.proxy.externalHost to the name by"
            " which clients reach its proxy, and spec.proxy.serviceType to LoadBalancer or NodePort"
        )
        raise Failure(ExitCode.NOT_FOUND, "NoExternalHost", message)
    uri = secret["external-uri"]
    options = parse_qs(urlsplit(uri).query).get("options", [""])[0]
    return {
        **{key: text for key, text in secret.items() if not key.startswith("external-")},
        "host": secret["external-host"],
        "port": secret["external-port"],
        "uri": uri,
        **({"options": options} if options else {}),
    }


def _with_user(uri: str, credentials: Mapping[str, str]) -> str:
    """Return the URI with another user and password."""
    user, password = (quote(credentials[key], safe="") for key in ("username", "password"))
    return f"postgresql://{user}:{password}@{uri.rpartition('@')[2]}"


def format_connection(secret: Mapping[str, str], url_format: str) -> str:
    """Return a `…-conn` Secret as a URI, as libpq's variables for a shell, as a JDBC URL or as JSON.

    `options`: as of `as_external`.
    """
    if url_format == "uri":
        return secret["uri"]
    options = {"options": secret["options"]} if "options" in secret else {}
    if url_format == "json":
        keys = ("host", "port", "username", "password", "database", "uri")
        return json.dumps({key: secret[key] for key in keys} | options, indent=2)
    if url_format == "jdbc":
        query = urlencode({"user": secret["username"], "password": secret["password"], **options})
        host = f"[{secret['host']}]" if ":" in secret["host"] else secret["host"]
        return f"jdbc:postgresql://{host}:{secret['port']}/{secret['database']}?{query}"
    variables = {
        "PGHOST": secret["host"],
        "PGPORT": secret["port"],
        "PGUSER": secret["username"],
        "PGPASSWORD": secret["password"],
        "PGDATABASE": secret["database"],
        **({"PGOPTIONS": secret["options"]} if options else {}),
    }
    return "\n".join(f"export {key}={shlex.quote(value)}" for key, value in variables.items())
