"""Run `tests.node.agent_life` without importing the Kubernetes client, which takes most of the process' start."""

from __future__ import annotations

import sys
from types import ModuleType

unused = ModuleType("kubernetes")
unused.client = unused.config = None  # type: ignore[attr-defined]
sys.modules["kubernetes"] = unused

if __name__ == "__main__":
    from tests.node.agent_life import main

    main()
