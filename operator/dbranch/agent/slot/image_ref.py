"""References of container images: by a tag, which may move, or by a digest, which cannot. Pure.

Sources: the grammar of github.com/distribution/reference; `imageID` of a container's status as kubelet writes it.
"""

from __future__ import annotations

import re
from typing import Final

_DIGEST: Final = re.compile(r"[a-z0-9]+:[0-9a-f]{32,128}")
_SHOWN_DIGITS: Final = 12


def digest_of(image_id: str | None) -> str:
    """Return the digest in an image ID; the ID itself if it has none; empty for None.

    >>> digest_of("docker.io/library/postgres@sha256:abc"), digest_of("sha256:def"), digest_of(None)
    ('sha256:abc', 'sha256:def', '')
    """
    return (image_id or "").rpartition("@")[2]


def pinned(image: str, image_id: str) -> str:
    """Return the reference by digest of an image that ran with this ID; `image` itself if it cannot be pulled so.

    An image that was loaded into a node has an ID of another repository, or of none.

    >>> digest = "sha256:" + "0" * 64
    >>> pinned("postgres:17", f"docker.io/library/postgres@{digest}") == f"postgres@{digest}"
    True
    >>> pinned("postgres:17", digest), pinned("postgres:17", f"docker.io/library/import-2026@{digest}")
    ('postgres:17', 'postgres:17')
    """
    repository, _, digest = image_id.rpartition("@")
    repository = repository.rpartition("://")[2]
    if "@" in image or not _DIGEST.fullmatch(digest) or not repository:
        return image
    own = _without_tag(image)
    return f"{own}@{digest}" if _full_name(own) == _full_name(repository) else image


def short(digest: str) -> str:
    """Return as much of a digest as people compare.

    >>> short("sha256:0123456789abcdef"), short("")
    ('0123456789ab', 'an unknown one')
    """
    return digest.rpartition(":")[2][:_SHOWN_DIGITS] or "an unknown one"


def _without_tag(image: str) -> str:
    """Return a reference without its tag.

    >>> _without_tag("registry:5000/postgres:17"), _without_tag("registry:5000/postgres")
    ('registry:5000/postgres', 'registry:5000/postgres')
    """
    name, colon, tag = image.rpartition(":")
    return name if colon and "/" not in tag else image


def _full_name(name: str) -> str:
    """Return a repository with the registry and the path that Docker's short names leave out.

    >>> _full_name("postgres"), _full_name("bitnami/postgresql"), _full_name("ghcr.io/a/b")
    ('docker.io/library/postgres', 'docker.io/bitnami/postgresql', 'ghcr.io/a/b')
    """
    first, slash, path = name.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost"):
        first, path = "docker.io", name
    if first in ("docker.io", "index.docker.io"):
        first, path = "docker.io", path if "/" in path else f"library/{path}"
    return f"{first}/{path}"
