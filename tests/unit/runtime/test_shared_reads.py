"""Reads that many share: never one that began before the question."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from dbranch.api.errors import ClusterUnreachable
from dbranch.kube.client import Cluster, Json
from dbranch.runtime.shared_reads import SharedReads


class SlowCluster:
    """An API server whose answers wait for `go_on`; an answer is the number of the read."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.count, self.running, self.error = 0, 0, False

    def get(self, path: str) -> Json | None:
        self.running += 1
        assert self.running == 1
        self.count += 1
        number = self.count
        self.begun.release()
        assert self.go_on.acquire(timeout=30)
        self.running -= 1
        if self.error:
            raise ClusterUnreachable("no answer")
        return {"number": number}

    def find(self, path: str, fields: str) -> list[Json]:
        body = self.get(f"{path}?{fields}")
        return [body] if body else []


def test_lists_are_shared_by_their_fields() -> None:
    cluster = SlowCluster()
    reads = SharedReads(cast(Cluster, cluster))
    with ThreadPoolExecutor(3) as executor:
        first = executor.submit(reads.find, "/branches", "spec.project=a")
        assert cluster.begun.acquire(timeout=30)
        others = [executor.submit(reads.find, "/branches", "spec.project=a") for _ in range(2)]
        while reads.waiting("/branches?spec.project=a") < len(others):
            time.sleep(0.001)
        assert reads.waiting("/branches?spec.project=b") == 0
        for _ in range(2):
            cluster.go_on.release()
        assert first.result(30) == [{"number": 1}]
        assert [other.result(30) for other in others] == [[{"number": 2}]] * 2


@pytest.mark.parametrize("is_failing", [False, True])
def test_all_who_ask_during_a_read_share_the_next_one(is_failing: bool) -> None:
    cluster = SlowCluster()
    reads = SharedReads(cast(Cluster, cluster))
    with ThreadPoolExecutor(21) as executor:
        first = executor.submit(reads.get, "/shop")
        assert cluster.begun.acquire(timeout=30)
        others = [executor.submit(reads.get, "/shop") for _ in range(20)]
        # The first read is answered when all the others have asked.
        while reads.waiting("/shop") < len(others):
            time.sleep(0.001)
        cluster.go_on.release()
        assert first.result(30) == {"number": 1}
        cluster.error = is_failing
        cluster.go_on.release()
        for other in others:
            if is_failing:
                with pytest.raises(ClusterUnreachable):
                    other.result(30)
            else:
                assert other.result(30) == {"number": 2}
    assert cluster.count == 2
    # Nothing is remembered behind that.
    cluster.error = False
    cluster.go_on.release()
    assert reads.get("/shop") == {"number": 3}
