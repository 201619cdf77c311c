"""What is remembered of pods that are gone. How snapshots and counts change is in test_registry.py."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ottoscaler.core.pods import Phase
from ottoscaler.flow import pod_cache
from ottoscaler.flow.pod_cache import PodCache
from tests.flow.pods import pod


def test_a_late_answer_brings_back_no_pod_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are remembered as may be, and the oldest is forgotten first."""
    monkeypatch.setattr(pod_cache, "TOMBSTONES", 3)
    cache = PodCache()
    for index in range(1, 5):
        cache.observe(pod(5, Phase.RUNNING, index=index))
        assert cache.observe(replace(pod(6, Phase.RUNNING, index=index), gone=True))
    assert [cache.learn(pod(5, Phase.RUNNING, index=index)) for index in range(1, 5)] == [True, False, False, False]
    assert [one.key.index for one in cache.snapshots()] == [1]
