"""What the store of the local Kubernetes promises a caller that holds its lock."""

from __future__ import annotations

import threading

from ottoscaler.local.store import Store


def test_a_look_without_patience_keeps_the_lock() -> None:
    """Otherwise a caller that holds it and then waits for a change misses the one that came within the look."""
    store = Store(100)
    position, _ = store.begin_watch("pods", None)
    entered = threading.Event()

    def other() -> None:
        with store.changed:
            entered.set()

    thread = threading.Thread(target=other)
    with store.changed:
        thread.start()
        for _ in range(200):
            assert store.read_changes("pods", position, 0)[0] == []
            assert not entered.wait(0.0005)
    thread.join()
    assert entered.is_set()
