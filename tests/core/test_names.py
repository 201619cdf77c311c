"""Names: the same event gives the same names, always, and the API server accepts every one."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.manifest import AttemptKey, event_hash, pod_name, selector
from ottoscaler.stored import split_owner_token

DNS_1123_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

ids = st.text(min_size=1, max_size=128)
keys = st.builds(AttemptKey, ids.map(lambda text: event_hash("otto", text)), st.integers(1, 10**6), st.integers(1, 999))


@pytest.mark.contract("4.name")
def test_the_hash_of_a_known_event_never_changes() -> None:
    """A changed formula would make a running cluster's pods strangers."""
    assert event_hash("ottoscaler", "1714557600000-0") == "089977c645"


@pytest.mark.contract("4.name")
@given(ids, ids)
def test_the_hash_is_the_contracts_formula(instance: str, event_id: str) -> None:
    """The first ten lower-case hexadecimal digits of SHA-256(instance, NUL, event id)."""
    whole = hashlib.sha256(instance.encode() + b"\0" + event_id.encode()).hexdigest()
    assert event_hash(instance, event_id) == whole[:10].lower()


def test_instances_share_no_names() -> None:
    """Two Ottoscalers in one namespace that read the same event do not meet."""
    assert event_hash("a", "e") != event_hash("b", "e")


def test_the_hash_keeps_instance_and_event_apart() -> None:
    """Moving a character from one to the other gives another hash."""
    assert event_hash("ab", "c") != event_hash("a", "bc")


@pytest.mark.contract("4.name")
@pytest.mark.parametrize(
    ("key", "name"),
    [
        (AttemptKey("0123456789", 1, 1), "otto-agent-0123456789-1"),
        (AttemptKey("0123456789", 12, 1), "otto-agent-0123456789-12"),
        (AttemptKey("0123456789", 1, 2), "otto-agent-0123456789-1-r2"),
        (AttemptKey("0123456789", 1000, 11), "otto-agent-0123456789-1000-r11"),
    ],
)
def test_a_name_shows_event_worker_and_attempt(key: AttemptKey, name: str) -> None:
    """The attempt shows from the second on."""
    assert pod_name(key) == name


@pytest.mark.contract("4.name")
@given(keys)
def test_every_name_is_one_that_kubernetes_takes(key: AttemptKey) -> None:
    """A DNS-1123 label of at most 63 characters, for a million workers too."""
    name = pod_name(key)
    assert DNS_1123_LABEL.fullmatch(name)
    assert len(name) <= 63


@pytest.mark.contract("4.name")
@given(keys, keys)
def test_names_agree_only_for_the_same_attempt(one: AttemptKey, other: AttemptKey) -> None:
    """The same key gives the same name, and no two keys share one."""
    assert (pod_name(one) == pod_name(other)) == (one == other)


@pytest.mark.contract("4.labels")
def test_the_selector_takes_one_instances_pods() -> None:
    """Manager and instance, as the labels of the pods have them."""
    assert selector("otto") == "managed-by=ottoscaler,ottoscaler.io/instance=otto"
    assert selector("otto", ["a", "b"]) == f"{selector('otto')},ottoscaler.io/event in (a,b)"


def test_a_key_identifies_its_worker_whatever_the_attempt() -> None:
    """What the attempts at one worker share."""
    assert AttemptKey("0123456789", 2, 1).worker == AttemptKey("0123456789", 2, 3).worker == ("0123456789", 2)


@given(st.text(min_size=1), st.text("0123456789abcdef", min_size=1), st.integers(0))
def test_an_owner_is_cut_from_the_right(consumer: str, incarnation: str, epoch: int) -> None:
    """A consumer may have slashes in its name, what follows has none."""
    assert split_owner_token(f"{consumer}/{incarnation}/{epoch}") == (consumer, incarnation)


@pytest.mark.parametrize("owner", ["", "c1", "c1/boot"])
def test_what_is_no_owner_is_none(owner: str) -> None:
    """A finished task has none."""
    assert split_owner_token(owner) == ("", "")
