"""The configuration file: the current project of each context and namespace.

It is `DBRANCH_CONFIG`, else `$DBRANCH_HOME/config.yaml`, else `$XDG_CONFIG_HOME/dbranch/config.yaml`, else
`~/.config/dbranch/config.yaml`:

    current:
      k3s: {team-a: shop}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.files import replace_file


def config_path() -> Path:
    """Return the path of the configuration file, which need not exist."""
    explicit = os.environ.get("DBRANCH_CONFIG")
    if explicit:
        return Path(explicit).expanduser()
    directory = os.environ.get("DBRANCH_HOME")
    if directory:
        return Path(directory).expanduser() / "config.yaml"
    xdg_config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(xdg_config) if xdg_config else Path("~/.config").expanduser()) / "dbranch" / "config.yaml"


def current_project(context: str, namespace: str) -> str | None:
    """Return the current project of a context and namespace, or None."""
    current = _read_config().get("current")
    by_namespace = (current.get(context) or {}) if isinstance(current, dict) else {}
    name = by_namespace.get(namespace) if isinstance(by_namespace, dict) else None
    return name if isinstance(name, str) else None


def set_current_project(context: str, namespace: str, project: str | None) -> None:
    """Set the current project of a context and namespace, or unset it (None). Replaces the file atomically."""
    import yaml

    config = _read_config()
    if not isinstance(config.get("current"), dict):
        config["current"] = {}
    by_namespace = config["current"].setdefault(context, {})
    if project is None:
        if by_namespace.pop(namespace, None) is None:
            return
    else:
        by_namespace[namespace] = project
    path = config_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, yaml.safe_dump(config).encode())
    except OSError as error:
        raise Failure(
            ExitCode.OTHER,
            "ConfigNotWritable",
            f"cannot write {path}: {error.strerror}; choose the project with -p instead",
        ) from error


def _read_config() -> dict[str, Any]:
    import yaml

    path = config_path()
    try:
        loaded = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        message = f"cannot read {path}: {error}; fix or delete the file"
        raise Failure(ExitCode.OTHER, "BadConfig", message) from error
    if isinstance(loaded, dict) and "mount_point" in loaded:
        message = f"{path} is the configuration of the original dbranch; set DBRANCH_CONFIG to another file"
        raise Failure(ExitCode.OTHER, "BadConfig", message)
    return loaded if isinstance(loaded, dict) else {}
