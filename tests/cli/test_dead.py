"""`dead`: what it shows of dead letters, and that `redrive` sends each one again once, however often it is called."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from ottoscaler.adapters.dead import DeadLetterOutcome, DeadLetters, canonical_entry_id
from ottoscaler.cli.main import main
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.verdicts import EndReason
from ottoscaler.settings import Settings
from tests.cli.conftest import LONG_S, Controller, Terminal, entries
from tests.e2e.tcp_proxy import TcpProxy

pytestmark = pytest.mark.contract("1.dead")
redrive = pytest.mark.contract("3.redrive")

Out = pytest.CaptureFixture[str]
UNKNOWN = "There is no dead letter 1-1; 'dead list' shows those that there are\n"


@pytest.fixture
def bury(settings: Settings, client: redis.Redis, controller: Controller) -> Callable[..., str]:
    """Let an event become a dead letter; returns that one's id."""

    def buried(**fields: Any) -> str:
        client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "lots", **fields})
        assert controller.take() is None
        return entries(client, settings.keys.dead_letter_stream)[-1][0]

    return buried


@pytest.fixture
def sent(settings: Settings, controller: Controller) -> Callable[[], dict[bytes, bytes]]:
    """The next event of the stream, byte for byte."""

    def read() -> dict[bytes, bytes]:
        (entry,) = controller.stream.read_now(10)
        return dict(entry.fields or {})

    return read


# -- looking


def test_the_list_has_the_newest_first(bury: Callable[..., str], capsys: Out) -> None:
    """A line each, with reason, event and detail; older ones are counted."""
    first, second, third = bury(), bury(event_id="mine"), bury()
    assert main(["dead", "list", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [third, second, "and 1 older one (--count)"]
    assert lines[1] == f'{second}: Invalid, event mine: field pod_count is "lots"; a whole number from 1 is expected'
    assert main(["dead", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(first)


@pytest.mark.usefixtures("names")
def test_an_empty_list_says_so(capsys: Out) -> None:
    """Nothing printed could be a failure as well."""
    assert main(["dead", "list"]) == 0
    assert capsys.readouterr().out == "No dead letters\n"


def test_the_list_as_json_has_all_fields(bury: Callable[..., str], capsys: Out) -> None:
    """The names of the dead-letter stream, and two of our own."""
    dead_id = bury(event_id="mine")
    assert main(["dead", "list", "--json"]) == 0
    (letter,) = json.loads(capsys.readouterr().out)
    assert (letter["id"], letter["dead_reason"], letter["event_id"]) == (dead_id, "Invalid", "mine")
    assert (letter["group"], letter["attempts"], letter["redriven"]) == ("ottoscaler", "0", "")
    assert json.loads(letter["event"])["pod_count"] == "lots"


def test_one_is_shown_with_its_event(bury: Callable[..., str], capsys: Out) -> None:
    """A field a line; what does not print is escaped, what is not UTF-8 shows as it is kept."""
    dead_id = bury(note="\x1b[2Jcleared", raw=b"\xff\x00")
    assert main(["dead", "show", dead_id]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"id: {dead_id}" in lines
    assert "dead_reason: Invalid" in lines
    assert lines[lines.index("event:") + 1 :] == [
        "  type = scale_up",
        "  pod_count = lots",
        "  note = \\x1b[2Jcleared",
        '  raw = {"base64": "/wA="}',
    ]
    assert main(["dead", "show", dead_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == dead_id


def test_a_terminal_gets_a_table(bury: Callable[..., str]) -> None:
    """With a heading for each column."""
    dead_id = bury()
    terminal = Terminal("dead", "list")
    assert terminal.end() == 0
    assert "sent again as" in terminal.screen
    assert dead_id in terminal.screen


# -- sending again


@redrive
def test_an_event_is_sent_again_changed_as_asked(
    bury: Callable[..., str], sent: Callable[[], dict[bytes, bytes]], capsys: Out
) -> None:
    """Under an event id of its own, which is printed; fields are changed, added and left out."""
    dead_id = bury(event_id="mine", image="x", note="kept")
    assert main(["dead", "redrive", dead_id, "pod_count=2", "more=1=1", "--without", "image"]) == 0
    assert capsys.readouterr().out.strip().partition("-")[0].isdigit()
    assert sent() == {
        b"type": b"scale_up",
        b"pod_count": b"2",
        b"event_id": f"redrive:{dead_id}".encode(),
        b"note": b"kept",
        b"more": b"1=1",
    }


@redrive
def test_values_come_back_byte_for_byte(bury: Callable[..., str], sent: Callable[[], dict[bytes, bytes]]) -> None:
    """Also those that are no text, and those that only look like the form in which such are kept."""
    raw = bytes(range(256))
    dead_id = bury(raw=raw, cut="true", fields="x", text='{"base64": "AA=="}', umlaut="\u00e4\n")
    assert main(["dead", "redrive", dead_id, "--force"]) == 0
    found = sent()
    assert (found[b"raw"], found[b"text"], found[b"umlaut"]) == (raw, b'{"base64": "AA=="}', "\u00e4\n".encode())
    assert (found[b"cut"], found[b"fields"], found[b"pod_count"]) == (b"true", b"x", b"lots")


@redrive
def test_a_redriven_event_is_carried_out(bury: Callable[..., str], controller: Controller, capsys: Out) -> None:
    """The controller takes it as any other."""
    dead_id = bury()
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 0
    task = controller.take()
    assert task is not None
    assert (task.event.event_id, task.event.stream_id) == (f"redrive:{dead_id}", capsys.readouterr().out.strip())


@redrive
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("changes", [[], ["pod_count=3"], ["--without", "nothing"]])
def test_a_second_redrive_changes_nothing_and_names_the_first(
    bury: Callable[..., str],
    settings: Settings,
    client: redis.Redis,
    controller: Controller,
    capsys: Out,
    finished: bool,
    changes: list[str],
) -> None:
    """Also with other changes, which would make a conflict of it; and after the first was carried out."""
    dead_id = bury()
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 0
    first = capsys.readouterr().out
    if finished:
        controller.carry_out(EndReason.COMPLETED)
    before = entries(client, settings.keys.stream)
    assert main(["dead", "redrive", dead_id, *changes]) == 0
    output = capsys.readouterr()
    assert output.out == first
    assert output.err == f"Dead letter {dead_id} was sent again before, as {first.strip()}: nothing was changed\n"
    assert entries(client, settings.keys.stream) == before
    main(["dead", "show", dead_id])
    assert f"redriven: {first.strip()}" in capsys.readouterr().out


@redrive
def test_many_at_once_send_one(
    bury: Callable[..., str], settings: Settings, client: redis.Redis, sent: Callable[[], dict[bytes, bytes]]
) -> None:
    """Each with other changes: one is first, and the others get the id of the first one's entry."""
    dead_id, start = bury(), threading.Barrier(8)
    opened = [DeadLetters(settings.redis, settings.keys) for _ in range(8)]

    def send(letters: DeadLetters, count: int) -> tuple[DeadLetterOutcome, str]:
        start.wait(LONG_S)
        return letters.redrive(dead_id, {b"type": b"scale_up", b"pod_count": b"%d" % count})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, opened, range(1, 9)))
    for letters in opened:
        letters.close()
    assert sorted(became.value for became, _ in answers) == ["known"] * 7 + ["sent"]
    assert len({stream_id for _, stream_id in answers}) == 1
    assert sent()[b"event_id"] == f"redrive:{dead_id}".encode()


@redrive
def test_an_answer_that_is_lost_may_be_asked_for_again(
    bury: Callable[..., str],
    settings: Settings,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Out,
) -> None:
    """The network swallows it after Redis has done the work: the second time names the first."""
    dead_id = bury()
    main(["dead", "purge", "1-1"])  # now the script is known, so that the lost answer is that of the work
    before = entries(client, settings.keys.stream)
    proxy = TcpProxy(settings.redis.port)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("REDIS_HOST", "127.0.0.1")
            patch.setenv("REDIS_PORT", str(proxy.port))
            proxy.lose_answer_to(b"redrive\r\n")
            capsys.readouterr()
            assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 1
            assert "cannot be reached" in capsys.readouterr().err
    finally:
        proxy.close()
    (new,) = entries(client, settings.keys.stream)[len(before) :]
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 0
    assert capsys.readouterr().out.strip() == new[0]
    assert len(entries(client, settings.keys.stream)) == len(before) + 1


@redrive
def test_an_event_of_that_id_that_came_otherwise_is_the_first(
    bury: Callable[..., str], settings: Settings, client: redis.Redis, controller: Controller, capsys: Out
) -> None:
    """A person sent it by hand: sent once more, with other fields, it would be a conflict."""
    dead_id = bury()
    by_hand = client.xadd(settings.keys.stream, {"type": "scale_up", "event_id": f"redrive:{dead_id}"})
    controller.carry_out(EndReason.COMPLETED)
    assert main(["dead", "redrive", dead_id, "pod_count=7"]) == 0
    assert capsys.readouterr().out.strip() == by_hand


@redrive
def test_what_was_cut_is_not_sent_again(
    bury: Callable[..., str], settings: Settings, client: redis.Redis, capsys: Out
) -> None:
    """Half an event would be another event."""
    dead_id = bury(large="x" * (1024 * 1024))
    before = entries(client, settings.keys.stream)
    assert main(["dead", "redrive", dead_id, "large=small"]) == 1
    sentence = capsys.readouterr().err
    assert sentence == (
        f"The event of dead letter {dead_id} was larger than 1 MiB and is kept only in part: it is not sent again\n"
    )
    assert entries(client, settings.keys.stream) == before
    assert main(["dead", "show", dead_id]) == 0
    assert capsys.readouterr().out.endswith("(cut: the rest was above 1 MiB)\n")


@redrive
def test_an_event_that_was_trimmed_away_is_not_there_to_send(
    settings: Settings, client: redis.Redis, controller: Controller, capsys: Out
) -> None:
    """The error says this, and what can be done."""
    client.xadd(settings.keys.stream, {"type": "scale_up"})
    (entry,) = controller.stream.read(1)
    client.xtrim(settings.keys.stream, maxlen=0, approximate=False)
    (gone,) = controller.stream.claim_pending(own=True, min_idle_s=0)
    controller.stream.dead_letter(gone, BadEvent(DeadReason.TRIMMED, "gone"))
    ((dead_id, _),) = entries(client, settings.keys.dead_letter_stream)
    assert main(["dead", "redrive", dead_id]) == 1
    assert "has no event any more (it was trimmed away): send it again" in capsys.readouterr().err
    assert entry.fields


@redrive
@pytest.mark.parametrize("event", ["", "[]", "{", '{"a": 1}', '{"a": {"base64": "%"}}', '{"a": {}}'])
def test_an_entry_that_is_not_ours_is_not_sent(
    settings: Settings, client: redis.Redis, capsys: Out, event: str
) -> None:
    """Another program wrote into the stream: one sentence, no traceback; `show` shows what is there."""
    fields = {"group": settings.keys.group, "event": event}
    dead_id = str(client.xadd(settings.keys.dead_letter_stream, fields))
    assert main(["dead", "redrive", dead_id]) == 1
    assert "holds no event that could be read" in capsys.readouterr().err
    assert main(["dead", "show", dead_id]) == 0


@redrive
def test_the_letter_of_another_group_is_not_sent(
    bury: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """Its events may come from another stream."""
    dead_id = bury()
    monkeypatch.setenv("REDIS_CONSUMER_GROUP", "others")
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 1
    assert "is of the consumer group 'ottoscaler', not of 'others'" in capsys.readouterr().err


@redrive
def test_an_event_of_too_many_fields_is_mended_by_leaving_some_out(
    bury: Callable[..., str], sent: Callable[[], dict[bytes, bytes]], capsys: Out
) -> None:
    """As it is it would be a dead letter again, and its one chance gone."""
    dead_id = bury(**{f"f{number}": "" for number in range(300)})
    assert main(["dead", "redrive", dead_id]) == 1
    assert "at most 256 are taken" in capsys.readouterr().err
    leave = [word for number in range(200) for word in ("--without", f"f{number}")]
    assert main(["dead", "redrive", *leave, dead_id, "pod_count=1"]) == 0
    assert len(sent()) == 103


@redrive
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["event_id=mine"], "event_id is not to be chosen"),
        (["--without", "event_id"], "event_id is not to be chosen"),
        (["a=1", "--without", "a"], "a is changed and left out at the same time"),
        (["a=1", "a=2"], "a is given twice"),
        (["a"], "'a' is not of the form FIELD=VALUE"),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(
    bury: Callable[..., str], capsys: Out, wrong: list[str], sentence: str
) -> None:
    """Usage, so 2; nothing is sent, and the one chance is still there."""
    dead_id = bury()
    assert main(["dead", "redrive", dead_id, *wrong]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 0


@redrive
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([], 'Invalid: field pod_count is "lots"; a whole number from 1 is expected'),
        (["pod_count=7"], "Invalid: field pod_count is 7; at most 5 are allowed (MAX_PODS_PER_EVENT)"),
        (["pod_count=1", "type=scale_sideways"], 'Invalid: field type is "scale_sideways"'),
        (["pod_count=1", "--without", "type"], "Invalid: field type is missing"),
        (["pod_count=1", "Reason=x"], 'Invalid: field name "Reason" is not of the form'),
        (["pod_count=1", "image=busybox"], "Unsupported: field image needs a policy, and POLICY_FILE is not set"),
        (["pod_count=1", "metadata=1"], 'Invalid: field metadata is "1"; a JSON object is expected'),
        (["pod_count=1", f"reason={'x' * 65536}"], "TooLarge: the event has"),
    ],
)
def test_what_the_controller_would_refuse_is_not_sent_again(
    bury: Callable[..., str],
    settings: Settings,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Out,
    changes: list[str],
    sentence: str,
) -> None:
    """It would be a dead letter once more, and the one time that it is sent again would be used up."""
    monkeypatch.setenv("MAX_PODS_PER_EVENT", "5")
    dead_id = bury()
    before = entries(client, settings.keys.stream)
    assert main(["dead", "redrive", dead_id, *changes]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"Not sent, the controller would refuse it: {sentence}" in output.err
    assert entries(client, settings.keys.stream) == before
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 0
    assert len(entries(client, settings.keys.stream)) == len(before) + 1


@redrive
def test_force_sends_again_what_the_controller_would_refuse(
    bury: Callable[..., str], sent: Callable[[], dict[bytes, bytes]], capsys: Out
) -> None:
    """The limits of the controller may be others than ours; a field that is nearly a known one is named either way."""
    dead_id = bury(podcount="1")
    assert main(["dead", "redrive", dead_id, "--force"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: field podcount is only passed on; did you mean pod_count?",
        'warning: the controller refuses this event: Invalid: field pod_count is "lots"; a whole number from 1 is'
        " expected",
    ]
    assert sent()[b"pod_count"] == b"lots"


def test_only_redrive_needs_the_limit_of_an_event(
    bury: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """A fault of that variable is no reason not to look."""
    dead_id = bury()
    monkeypatch.setenv("MAX_PODS_PER_EVENT", "many")
    assert main(["dead", "list"]) == 0
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 2
    assert "MAX_PODS_PER_EVENT='many'" in capsys.readouterr().err


def test_a_field_that_is_not_there_cannot_be_left_out(bury: Callable[..., str], capsys: Out) -> None:
    """Most likely it is misspelt."""
    dead_id = bury()
    assert main(["dead", "redrive", dead_id, "--without", "imgae"]) == 1
    assert f"Dead letter {dead_id} has no field imgae that could be left out" in capsys.readouterr().err


# -- taking away


def test_purge_takes_that_entry_only(
    bury: Callable[..., str], settings: Settings, client: redis.Redis, capsys: Out
) -> None:
    """With what was remembered of it."""
    first, second, third = bury(), bury(), bury()
    assert main(["dead", "redrive", second, "pod_count=1"]) == 0
    assert main(["dead", "purge", second]) == 0
    assert capsys.readouterr().out.endswith(f"Dead letter {second} was taken away\n")
    assert [dead_id for dead_id, _ in entries(client, settings.keys.dead_letter_stream)] == [first, third]
    assert client.exists(f"{settings.keys.prefix}redriven") == 0
    assert main(["dead", "purge", second]) == 1


def test_an_entry_that_was_purged_is_not_buried_again(
    settings: Settings, client: redis.Redis, controller: Controller
) -> None:
    """A controller that repeats the write because its answer was lost does not bring it back."""
    client.xadd(settings.keys.stream, {"type": "neither"})
    (entry,) = controller.stream.read(1)
    for _ in range(2):
        controller.stream.dead_letter(entry, BadEvent(DeadReason.INVALID, "why"))
        found = entries(client, settings.keys.dead_letter_stream)
        for dead_id, _fields in found:
            assert main(["dead", "purge", dead_id]) == 0
    assert found == []


# -- what is wrong


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("action", ["show", "redrive", "purge"])
def test_an_unknown_id_is_one_sentence(capsys: Out, action: str) -> None:
    """Exit code 1."""
    assert main(["dead", action, "1-1"]) == 1
    assert capsys.readouterr().err == UNKNOWN


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("action", ["show", "redrive", "purge"])
@pytest.mark.parametrize(
    "odd", ["", "1", "1-", "a-b", "1-1 ", "1-1\n", "\u0661-1", "-", "+", "$", "(1-1", "*", "1-\x1b[2J", f"{2**64}-0"]
)
def test_an_id_of_another_form_is_refused(capsys: Out, action: str, odd: str) -> None:
    """Redis would take some of them for a range or a part of an id; usage, so 2, and nothing that moves a cursor."""
    assert main(["dead", action, odd]) == 2
    output = capsys.readouterr().err
    assert "is no id of a dead letter; those look like 1714557600000-0" in output
    assert "\x1b" not in output


@redrive
def test_an_entry_has_one_id_however_it_is_written(bury: Callable[..., str], capsys: Out) -> None:
    """With zeros before it, it is not sent a second time."""
    dead_id = bury()
    assert canonical_entry_id(f"0{dead_id}") == dead_id
    assert main(["dead", "redrive", dead_id, "pod_count=1"]) == 0
    assert main(["dead", "redrive", f"0{dead_id}", "pod_count=1"]) == 0
    assert "was sent again before" in capsys.readouterr().err


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("wrong", ["0", "-1", "x", "1.5", "9999999"])
def test_a_count_is_a_number(capsys: Out, wrong: str) -> None:
    """From one on."""
    assert main(["dead", "list", f"--count={wrong}"]) == 2
    assert "is not a number from 1 to 1000000" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["list"], ["show", "1-1"], ["redrive", "1-1"], ["purge", "1-1"]])
def test_a_key_of_a_wrong_type_is_one_sentence(
    settings: Settings, client: redis.Redis, capsys: Out, arguments: list[str]
) -> None:
    """The key of the stream holds a value of another type."""
    client.set(settings.keys.dead_letter_stream, "x")
    assert main(["dead", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "WRONGTYPE" in line


@pytest.mark.parametrize("arguments", [["list"], ["show", "1-1"], ["redrive", "1-1"], ["purge", "1-1"]])
def test_without_redis_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Out, arguments: list[str]) -> None:
    """Exit code 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(port))
    assert main(["dead", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Redis at 127.0.0.1:{port} cannot be reached")


@pytest.mark.usefixtures("names")
def test_an_action_has_to_be_named(capsys: Out) -> None:
    """There is no default: one of them takes something away."""
    assert main(["dead"]) == 2
    assert "list|show|redrive|purge" in capsys.readouterr().err
