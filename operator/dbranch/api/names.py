"""The names that the roles share: API group, labels, finalizers, annotations, names of objects and files.

Everything that dbranch creates, in the cluster or on a node, is named and labelled from here.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

GROUP: Final = "dbranch.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
PROJECT_KIND: Final = "DBProject"
BRANCH_KIND: Final = "DBBranch"
SNAPSHOT_KIND: Final = "DBSnapshot"
RESTORE_KIND: Final = "DBRestore"
PROJECTS: Final = "dbprojects"
BRANCHES: Final = "dbbranches"
SNAPSHOTS: Final = "dbsnapshots"
RESTORES: Final = "dbrestores"

ROOT_BRANCH: Final = "main"

# Each role's own finalizer and prefix of its annotations. They stand on live objects, so they must never change.
CONTROLLER_FINALIZER: Final = f"{GROUP}/controller"
AGENT_FINALIZER: Final = f"{GROUP}/agent"
CONTROLLER_PREFIX: Final = f"controller.{GROUP}"
AGENT_PREFIX: Final = f"agent.{GROUP}"

# Written on a DBBranch to request a reconcile of it by that role; the controller's by people only.
CONTROLLER_REQUESTED_AT: Final = f"{CONTROLLER_PREFIX}/requestedAt"
AGENT_REQUESTED_AT: Final = f"{AGENT_PREFIX}/requestedAt"
# On an agent's own pod: free bytes of the filesystem that holds the base directory, decimal.
AGENT_HOST_FREE: Final = f"{AGENT_PREFIX}/host-free-bytes"
# Written on a DBBranch by a person or `dbranch restart`: its Postgres restarts once for each value (RFC 3339).
RESTARTED_AT: Final = f"{GROUP}/restartedAt"
# Written on a DBBranch by a person or `dbranch restart --reset-alter-system`: its Postgres restarts without what
# ALTER SYSTEM has set, once for each value (RFC 3339).
ALTER_SYSTEM_RESET_AT: Final = f"{GROUP}/alterSystemResetAt"
# On a slot's pod: the UID of the DBRestore that it was claimed or created for. Only the data of that restore is bound
# in it, until that is the branch's own.
POD_RESTORE: Final = f"{GROUP}/restore"
# Characters of the value of either, as `status.node` repeats it.
MAX_TIME_LENGTH: Final = 64
# On an agent's own pod: what it can do that agents of an earlier release cannot, separated by commas.
AGENT_FEATURES: Final = f"{AGENT_PREFIX}/features"
FEATURE_SNAPSHOTS: Final = "snapshots"
FEATURE_RESTORES: Final = "restores"
# It makes the data of a branch that is being deleted the DBSnapshot that `status.copy` names.
FEATURE_DELETION_COPIES: Final = "deletion-copies"
# It keeps the pool of a project that is deleted, detached, for as long as the project says.
FEATURE_PROJECT_UNDO: Final = "project-undo"
# It touches a branch that is being deleted when `status.release` says so. Agents without it wait until the
# controller's finalizer is gone.
FEATURE_RELEASE: Final = "release"
# What agents of this release can.
FEATURES: Final = (
    FEATURE_DELETION_COPIES,
    FEATURE_PROJECT_UNDO,
    FEATURE_RELEASE,
    FEATURE_RESTORES,
    FEATURE_SNAPSHOTS,
)
# `status.release` of a branch that the controller has not let go of yet.
RELEASE_PENDING: Final = "Pending"
# On an agent's own pod: the UIDs of projects that do not exist and whose pools on its node can be adopted, separated
# by commas.
AGENT_RETAINED: Final = f"{AGENT_PREFIX}/retained"
# On an agent's own pod: the data on its node that no object names, as JSON (`dbranch.api.orphans`).
AGENT_ORPHANS: Final = f"{AGENT_PREFIX}/orphans"
# Written by an administrator on an agent's pod, with the UID of an orphan as the name; the agent obeys and removes
# it. The value of the latter is the namespace that may adopt the pool.
ORPHAN_DELETE_PREFIX: Final = f"orphan-delete.{GROUP}/"
ORPHAN_ALLOW_PREFIX: Final = f"orphan-allow.{GROUP}/"
# Written by a person on a project or branch whose node will never return: `dbranch.io/abandon-node: <node>`.
ABANDON_NODE: Final = f"{GROUP}/abandon-node"

# Field managers. A proxy pod's is PROXY_MANAGER_PREFIX + its name.
CONTROLLER_MANAGER: Final = "dbranch-controller"
AGENT_MANAGER: Final = "dbranch-agent"
CLI_MANAGER: Final = "dbranch-cli"
PROXY_MANAGER_PREFIX: Final = "dbranch-proxy-"

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
# The Helm release. Not `app.kubernetes.io/instance`: Argo CD may track by that label, and prunes what carries it, has
# no owner and does not stand in Git.
LABEL_RELEASE: Final = f"{GROUP}/release"
LABEL_NAMESPACE: Final = f"{GROUP}/namespace"
LABEL_PROJECT: Final = f"{GROUP}/project"
LABEL_BRANCH: Final = f"{GROUP}/branch"
LABEL_PROJECT_UID: Final = f"{GROUP}/project-uid"
LABEL_BRANCH_UID: Final = f"{GROUP}/branch-uid"
# Of a DBSnapshot: what it was made for, `spec.origin.reason`.
LABEL_ORIGIN: Final = f"{GROUP}/origin"
LABEL_SLOT: Final = f"{GROUP}/slot"
LABEL_CLASS: Final = f"{GROUP}/class"
# On the copies of pull secrets in the nodes' namespace: "copy".
LABEL_PULL_SECRET: Final = f"{GROUP}/pull-secret"
# On a slot's pod: hash of its template without its class, so that a new release replaces warm slots.
TEMPLATE_HASH: Final = f"{AGENT_PREFIX}/template-hash"

# In `features` of a proxy's entry in `status.proxies`: it reads `status.route` of the DBBranches.
PROXY_FOLLOWS_BRANCHES: Final = "BranchRoutes"
# It holds new sessions while `status.route.restore` stands, and says so in `status.proxies` of the DBBranch.
PROXY_RESTORES: Final = "restores"

COMPONENT_AGENT: Final = "agent"
COMPONENT_PROXY: Final = "proxy"
COMPONENT_POSTGRES: Final = "postgres"

POSTGRES_PORT: Final = 5432
# The startup parameter, and setting in `options`, by which a session names its branch.
BRANCH_PARAMETER: Final = "dbranch.branch"
# The role that initdb makes.
SUPERUSER: Final = "postgres"

# In the nodes' namespace, created by the chart.
POSTGRES_SERVICE_ACCOUNT: Final = "dbranch-postgres"

MAX_PROJECT_LENGTH: Final = 30
MAX_OBJECT_LENGTH: Final = 63
# Of a DBSnapshot, which is the name of nothing else.
MAX_SNAPSHOT_LENGTH: Final = 253
# Of a project: what `status.routes` holds, while a proxy of release 0.1.0 needs it.
MAX_BRANCHES: Final = 1000


def labels(component: str, release: str, **extra_labels: str) -> dict[str, str]:
    """Return the labels of an object: Kubernetes' recommended ones and `extra_labels` by their full keys.

    >>> labels("proxy", "dbranch")["app.kubernetes.io/component"]
    'proxy'
    """
    return {
        LABEL_NAME: "dbranch",
        LABEL_RELEASE: release,
        LABEL_COMPONENT: component,
        LABEL_MANAGED_BY: "dbranch",
        LABEL_PART_OF: "dbranch",
        **extra_labels,
    }


def branch_object_name(project: str, branch: str) -> str:
    """Return the name of a branch's DBBranch, Service and EndpointSlice: `<project>-<branch>`."""
    return f"{project}-{branch}"


def branch_name(project: str, object_name: str) -> str:
    """Return a branch's name: what follows `<project>-` in the name of its object.

    Raises ValueError if the object has another name (a CEL rule of the CRD rejects such an object).
    """
    prefix = f"{project}-"
    if not object_name.startswith(prefix) or object_name == prefix:
        raise ValueError(f"{object_name} is not <project>-<branch> of project {project}")
    return object_name.removeprefix(prefix)


def snapshot_short_name(project: str, object_name: str) -> str:
    """Return a snapshot's name as people read it: what follows `<project>-`, else the whole name.

    >>> snapshot_short_name("shop", "shop-before-migration"), snapshot_short_name("shop", "nightly")
    ('before-migration', 'nightly')
    """
    return object_name.removeprefix(f"{project}-") or object_name


def derived_name(object_name: str, use: str, uid: str) -> str:
    """Return the name of an object that dbranch makes once for the object with this UID: of a restore, a branch.

    `use`: `undo` or `deleted`. The same UID always gives the same name, so that nothing is made twice.

    >>> derived_name("shop-feature-x", "undo", "5d1a")
    'shop-feature-x-undo-tghak'
    """
    digest = base64.b32encode(hashlib.sha256(uid.encode()).digest()).decode().lower()
    return f"{object_name}-{use}-{digest[:5]}"


def undo_snapshot_name(object_name: str, restore_uid: str) -> str:
    """Return the name of the DBSnapshot that gets what a DBRestore replaces in this DBBranch."""
    return derived_name(object_name, "undo", restore_uid)


def deletion_copy_name(object_name: str, uid: str) -> str:
    """Return the name of the DBSnapshot that gets the data of this DBBranch, or is the record of this DBProject,
    when that is deleted.
    """
    return derived_name(object_name, "deleted", uid)


def project_service_name(project: str) -> str:
    """Return the name of the proxy's Service: the project's own, so `psql -h shop` follows a switch."""
    return project


def conn_secret_name(object_name: str) -> str:
    """Return the name of a project's or branch's Secret with host, port, username, password, database and uri."""
    return f"{object_name}-conn"


def superuser_secret_name(project: str) -> str:
    """Return the name of a project's Secret with the superuser's password; its keys are those of `<project>-conn`."""
    return conn_secret_name(f"{project}-superuser")


def proxy_name(project: str) -> str:
    """Return the name of the proxy's Deployment, ServiceAccount, Role and RoleBinding."""
    return f"{project}-proxy"


def verifier_secret_name(project_uid: str) -> str:
    """Return the name of the Secret, in the nodes' namespace, with the SCRAM verifiers of a project's passwords.

    Its keys: `verifier` of the application's role, `superuser` where the superuser is another role.
    """
    return f"verifier-{project_uid}"


def node_account_name(node: str) -> str:
    """Return the name, in the nodes' namespace, of the account that may read the Secrets of a node's projects."""
    return f"node-{node}"


def node_access_name(project_uid: str) -> str:
    """Return the name, in the nodes' namespace, of the Role and RoleBinding that give a node a project's Secrets."""
    return f"node-{project_uid}"


def pull_secret_name(project_uid: str, name: str) -> str:
    """Return the name, in the nodes' namespace, of the copy of a project's pull secret of this name.

    >>> pull_secret_name("u", "registry")
    'pull-u-872491a3'
    """
    return f"pull-{project_uid}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def initdb_pod_name(project_uid: str) -> str:
    """Return the name of the pod, in the nodes' namespace, that runs `initdb` once."""
    return f"initdb-{project_uid}"


def slot_name(branch_uid: str, attempt: str) -> str:
    """Return the name of a slot's directory and pod. A slot serves one branch once, so each attempt has another.

    `attempt`: any text that differs from that of the previous attempts (random, or a count).
    """
    return f"slot-{hashlib.sha256(f'{branch_uid}/{attempt}'.encode()).hexdigest()[:16]}"


def warm_slot_name(random_text: str) -> str:
    """Return the name of a warm slot's directory and pod."""
    return slot_name("", random_text)


def branch_port(branch_uid: str) -> int:
    """Return the port of a branch's Postgres, 20000 to 29999, derived from the branch's UID.

    A connection by a stale route to an address that another branch's pod has since been given is thus refused;
    it does not reach that branch, which may have the same password.
    """
    return 20000 + int.from_bytes(hashlib.sha256(branch_uid.encode()).digest()[:4], "big") % 10000


def service_host(service: str, namespace: str) -> str:
    """Return the DNS name of a Service, which resolves in every namespace of the cluster."""
    return f"{service}.{namespace}.svc"
