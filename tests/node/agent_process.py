"""Runs `tests.node.agent_life` without the client of a real API server, whose import is most of a life's start."""

from __future__ import annotations

import sys
from types import ModuleType

unused = ModuleType("kubernetes")
unused.client = unused.config = None  # type: ignore[attr-defined]
sys.modules["kubernetes"] = unused

if __name__ == "__main__":
    from tests.node.agent_life import main

    main()
