"""A root branch by initdb: an empty area, in which `initdb.sh` runs, becomes the branch."""

from __future__ import annotations

from dbranch.agent.layout import INITDB_DONE, Layout
from dbranch.agent.volume import tenant
from dbranch.agent.volume.effect import (
    check_unused,
    destroy,
    marker_of,
    mounted_pool,
    read_marker,
    rename_durably,
    sync,
    write_new_files,
)
from dbranch.agent.volume.marker import FROM_INITDB, Marker, Origin
from dbranch.agent.volume.quotas import create_subvolume
from dbranch.agent.volume.settings import Settings
from dbranch.api.errors import Busy, Unsafe


def ensure_initdb_area(layout: Layout, project_uid: str, branch_uid: str, owner: int) -> None:
    """Create an empty subvolume for `initdb.sh`, its `pgdata` owned by the user ID `owner`.

    One from an earlier attempt is destroyed: call it only while no pod of that attempt exists, and not again once
    the new pod was created (bind it with `slot.ensure_initdb_bound`). Never touches a branch.
    """
    mounted_pool(layout, project_uid)
    area = layout.initdb_area(project_uid, branch_uid)
    read_marker(area)
    check_unused(area, layout)
    destroy(area)
    create_subvolume(area)
    area.chmod(0o755)
    tenant.make_pgdata(area, owner)
    sync(area)


def ensure_initdb_promoted(
    layout: Layout, project_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """Make the result of `initdb.sh` the root branch; return its marker. No-op if that was done already.

    `now`: RFC 3339. Raises Busy before the script is done, Unsafe if it left no database.
    """
    mounted_pool(layout, project_uid)
    area, branch = layout.initdb_area(project_uid, branch_uid), layout.branch(project_uid, branch_uid)
    if branch.exists():
        return marker_of(branch)
    marker = read_marker(area)
    superuser = tenant.superuser_of_initdb(area)
    if superuser is None:
        if marker is None:
            raise Busy(f"initdb in {area} is not done; it is tried again")
    else:
        major = tenant.major_of(area)
        if major is None or not superuser:
            raise Unsafe(
                f"initdb left no whole database in {area}; nothing is used; check spec.postgres.image"
            )
        marker = Marker(
            project_uid,
            branch_uid,
            settings.names.role,
            Origin(FROM_INITDB, None, now),
            now,
            major,
            cleaned=True,
            # Nothing has to be kept from users: Postgres loads the pg_hba.conf that admits them at its first start.
            opened=True,
            names=settings.names,
            superuser=superuser,
            initdb_settings=tenant.initdb_settings_of(area),
        )
        write_new_files(area, marker, settings)
        tenant.remove_beneath(area, INITDB_DONE)
    return rename_durably(area, branch)
