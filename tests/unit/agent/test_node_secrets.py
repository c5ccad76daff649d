"""The agent reads Secrets by a token of its node's account, which it renews."""

from __future__ import annotations

from typing import cast

import pytest

from dbranch.agent.context import NodeContext
from dbranch.agent.node_secrets import NodeSecrets
from dbranch.agent.timing import NODE_TOKEN_RENEWAL_SECONDS, NODE_TOKEN_SECONDS
from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, Json

ACCOUNT = "/api/v1/namespaces/dbranch-nodes/serviceaccounts/node-n1"
SECRET = "/api/v1/namespaces/dbranch-nodes/secrets/verifier-u"


class Api:
    """Gives tokens, of which some are refused."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.refusals: dict[str, int] = {}

    def request_token(self, account_path: str, seconds: int) -> str:
        assert account_path == ACCOUNT and seconds == NODE_TOKEN_SECONDS
        self.tokens.append(f"t{len(self.tokens)}")
        return self.tokens[-1]

    def get(self, path: str, token: str = "") -> Json | None:
        assert path == SECRET
        if token in self.refusals:
            raise ApiError(self.refusals[token], "", "refused")
        return {"token": token}


def test_one_token_serves_until_it_is_renewed_well_before_its_end() -> None:
    api, now = Api(), 1000.0
    secrets = NodeSecrets(cast(Cluster, api), NodeContext("n1", "u", "dbranch-nodes", "dbranch"), lambda: now)
    assert [secrets.get("verifier-u") for _ in range(3)] == 3 * [{"token": "t0"}]
    now += NODE_TOKEN_RENEWAL_SECONDS + 1
    assert secrets.get("verifier-u") == {"token": "t1"} and len(api.tokens) == 2
    assert NODE_TOKEN_RENEWAL_SECONDS < NODE_TOKEN_SECONDS - 600


def test_a_token_of_an_account_that_was_made_again_is_replaced_at_once() -> None:
    api = Api()
    secrets = NodeSecrets(cast(Cluster, api), NodeContext("n1", "u", "dbranch-nodes", "dbranch"))
    secrets.get("verifier-u")
    api.refusals["t0"] = 401
    assert secrets.get("verifier-u") == {"token": "t1"}
    # What it may not read is not asked for again with another token.
    api.refusals["t1"] = 403
    with pytest.raises(ApiError):
        secrets.get("verifier-u")
    assert len(api.tokens) == 2
