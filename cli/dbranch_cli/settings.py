"""The configuration file: the current project of each context and namespace.

`DBRANCH_CONFIG`, else `$XDG_CONFIG_HOME/dbranch/config.yaml`, else `~/.config/dbranch/config.yaml`:

    current:
      k3s: {team-a: shop}
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from dbranch_cli.failure import OTHER, Failure


def settings_path() -> Path:
    named = os.environ.get("DBRANCH_CONFIG")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path("~/.config").expanduser()) / "dbranch" / "config.yaml"


def current_project(context: str, namespace: str) -> str | None:
    current = _read().get("current")
    chosen = (current.get(context) or {}) if isinstance(current, dict) else {}
    name = chosen.get(namespace) if isinstance(chosen, dict) else None
    return name if isinstance(name, str) else None


def set_current_project(context: str, namespace: str, project: str | None) -> None:
    """Remember a project, or forget it (None). The file is replaced as a whole, or not at all."""
    settings = _read()
    if not isinstance(settings.get("current"), dict):
        settings["current"] = {}
    chosen = settings["current"].setdefault(context, {})
    if project is None:
        if chosen.pop(namespace, None) is None:
            return
    else:
        chosen[namespace] = project
    path = settings_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                yaml.safe_dump(settings, file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise Failure(
            OTHER, "ConfigNotWritable", f"cannot write {path}: {error.strerror}; name a project with -p"
        ) from error


def _read() -> dict[str, Any]:
    path = settings_path()
    try:
        loaded = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise Failure(OTHER, "BadConfig", f"cannot read {path}: {error}; mend it, or delete it") from error
    return loaded if isinstance(loaded, dict) else {}
