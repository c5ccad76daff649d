"""The names that the parts share: API group, labels, finalizers, annotations, object and disk names.

Everything that dbranch makes, in the cluster or on a node, is named and labelled from here.
"""

from __future__ import annotations

import hashlib
from typing import Final

GROUP: Final = "dbranch.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
PROJECT_KIND: Final = "DBProject"
BRANCH_KIND: Final = "DBBranch"
PROJECTS: Final = "dbprojects"
BRANCHES: Final = "dbbranches"

ROOT_BRANCH: Final = "main"

# Each role's own finalizer; their prefixes for kopf's annotations are fixed for ever.
CONTROLLER_FINALIZER: Final = f"{GROUP}/controller"
AGENT_FINALIZER: Final = f"{GROUP}/agent"
CONTROLLER_PREFIX: Final = f"controller.{GROUP}"
AGENT_PREFIX: Final = f"agent.{GROUP}"

# `…/poke`: written by an event handler to wake an object that waits for another one.
CONTROLLER_REQUESTED_AT: Final = f"{CONTROLLER_PREFIX}/requestedAt"
AGENT_REQUESTED_AT: Final = f"{AGENT_PREFIX}/requestedAt"
# On an agent's own pod: free bytes of the disk that holds the base directory, decimal.
AGENT_HOST_FREE: Final = f"{AGENT_PREFIX}/host-free-bytes"
# By a person (or `dbranch restart`), on a branch: its Postgres is started anew once for each value, RFC 3339.
RESTARTED_AT: Final = f"{GROUP}/restartedAt"
# On an agent's own pod: the UIDs of projects whose retained pools it holds, separated by commas.
AGENT_RETAINED: Final = f"{AGENT_PREFIX}/retained"
# By a person, on a project or branch whose node is away for good: `dbranch.io/abandon-node: <node>`.
ABANDON_NODE: Final = f"{GROUP}/abandon-node"

# Field managers of server-side apply; a proxy's own is PROXY_MANAGER_PREFIX + its pod's name.
CONTROLLER_MANAGER: Final = "dbranch-controller"
AGENT_MANAGER: Final = "dbranch-agent"
CLI_MANAGER: Final = "dbranch-cli"
PROXY_MANAGER_PREFIX: Final = "dbranch-proxy-"

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
LABEL_NAMESPACE: Final = f"{GROUP}/namespace"
LABEL_PROJECT: Final = f"{GROUP}/project"
LABEL_BRANCH: Final = f"{GROUP}/branch"
LABEL_PROJECT_UID: Final = f"{GROUP}/project-uid"
LABEL_BRANCH_UID: Final = f"{GROUP}/branch-uid"
LABEL_SLOT: Final = f"{GROUP}/slot"
LABEL_CLASS: Final = f"{GROUP}/class"
# On a slot's pod: what it is made of besides its class, so that a new release makes waiting slots anew.
TEMPLATE_HASH: Final = f"{AGENT_PREFIX}/template-hash"

COMPONENT_AGENT: Final = "agent"
COMPONENT_PROXY: Final = "proxy"
COMPONENT_POSTGRES: Final = "postgres"

POSTGRES_PORT: Final = 5432

# Fixed objects of the nodes' namespace, made by the chart.
POSTGRES_SERVICE_ACCOUNT: Final = "dbranch-postgres"

MAX_PROJECT: Final = 30
MAX_OBJECT: Final = 63


def labels(component: str, instance: str, **more: str) -> dict[str, str]:
    """The labels of everything made: the recommended ones, and `more` by their full keys.

    >>> labels("proxy", "shop")["app.kubernetes.io/component"]
    'proxy'
    """
    return {
        LABEL_NAME: "dbranch",
        LABEL_INSTANCE: instance,
        LABEL_COMPONENT: component,
        LABEL_MANAGED_BY: "dbranch",
        LABEL_PART_OF: "dbranch",
        **more,
    }


def branch_object_name(project: str, branch: str) -> str:
    """The name of a branch's DBBranch, and of its Service: `<project>-<branch>`."""
    return f"{project}-{branch}"


def branch_name(project: str, object_name: str) -> str:
    """A branch's name: what follows `<project>-` in its object's name.

    Raises ValueError where the object's name does not begin so (the API server's CEL rule
    refuses such an object).
    """
    head, name = f"{project}-", object_name
    if not name.startswith(head) or name == head:
        raise ValueError(f"{object_name} is not <project>-<branch> of project {project}")
    return name[len(head) :]


def project_service_name(project: str) -> str:
    """The proxy's Service: the project's own name, so `psql -h shop` follows the switch."""
    return project


def conn_secret_name(object_name: str) -> str:
    """The Secret with host, port, username, password, database, uri of a project or branch."""
    return f"{object_name}-conn"


def proxy_name(project: str) -> str:
    """The proxy's Deployment, ServiceAccount, Role and RoleBinding."""
    return f"{project}-proxy"


def verifier_secret_name(project_uid: str) -> str:
    """In the nodes' namespace: the SCRAM verifier of the owner's password, under `verifier`."""
    return f"verifier-{project_uid}"


def initdb_pod_name(project_uid: str) -> str:
    """In the nodes' namespace: the one-shot pod that runs `initdb`."""
    return f"initdb-{project_uid}"


def slot_name(branch_uid: str, attempt: str) -> str:
    """A slot's directory and pod: unique a use, since a slot serves one branch once.

    `attempt` is what makes this use another than the last one (a random or counted word).
    """
    return f"slot-{hashlib.sha256(f'{branch_uid}/{attempt}'.encode()).hexdigest()[:16]}"


def warm_slot_name(drawn: str) -> str:
    """A slot that waits for any branch of its class: its directory and pod. `drawn`: a word drawn for it."""
    return slot_name("", drawn)


def branch_port(branch_uid: str) -> int:
    """The port of a branch's Postgres, 20000 to 29999, drawn from its UID.

    A stale route to an address that another pod has got meanwhile is then refused there
    instead of reaching another branch with the same password.
    """
    return 20000 + int.from_bytes(hashlib.sha256(branch_uid.encode()).digest()[:4], "big") % 10000


def service_host(service: str, namespace: str) -> str:
    """The DNS name of a Service that resolves in every namespace of the cluster."""
    return f"{service}.{namespace}.svc"
