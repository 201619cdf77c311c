"""The documents are true: their tables are compared with the code, their links with the files, and the Korean
texts with the English ones. That their commands work is for test_readme.py to show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import yaml

from ottoscaler.adapters.cluster import EVENT_VERBS, VERBS
from ottoscaler.adapters.kube_events import WRITE_VERBS
from ottoscaler.adapters.policy_file import parse_policy
from ottoscaler.core import manifest
from ottoscaler.core.events import MAX_EVENT_BYTES, MAX_FIELDS, DeadReason, EventType, ScaleEvent
from ottoscaler.core.manifest import worker_environment
from ottoscaler.core.outgoing_kube_events import EventReason
from ottoscaler.core.policy import decide
from ottoscaler.core.refusal import Violation
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.verdicts import EndReason, FaultOrigin, RetryBudget
from tests.readme import (
    DOCUMENTS,
    ENGLISH,
    PRODUCTION,
    README,
    REFERENCE,
    ROOT,
    TESTS,
    Table,
    codes,
    fences,
    korean,
    parts,
    table,
    variables,
)
from tests.schemas import faults, schema

contract = pytest.mark.contract

#: What the second column of a table of fields says where it is about results.
KINDS: Final = ("all", "worker", "task", "scale_down")
NAMES: Final = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

#: What stands in a cell where there is nothing.
NONE: Final = "\N{EN DASH}"
#: Where the cause lies: which side has to act, in words.
ACTORS: Final = {
    FaultOrigin.NONE: NONE,
    FaultOrigin.USER: "the sender of the event",
    FaultOrigin.CONFIG: "the operator of Ottoscaler",
    FaultOrigin.INFRA: "the operator of the cluster",
}
#: Defaults that depend on something stand in the table in words.
SPOKEN: Final = {
    "REDIS_CONSUMER": "the host name",
    "INSTANCE": "the consumer group",
    "NAMESPACE": "the pod's own, otherwise `default`",
    "OTTO_AGENT_COMMAND": "a shell line that prints its task and ends",
    "HTTP_ADDRESS": "`::` in a cluster, otherwise `127.0.0.1`",
    "LOG_FORMAT": "`json` (`text` on a terminal)",
    "ENV_FILE": NONE,
}

VARIABLES: Final = variables()


def shown(value: object) -> str:
    """A default as the table shows it."""
    if value in (None, "", (), {}):
        return NONE
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


@pytest.mark.parametrize("name", [pytest.param(name, marks=contract(f"2.{name}"), id=name) for name in VARIABLES])
def test_a_default_is_shown_as_it_is(name: str) -> None:
    """Or in words, where it depends on something; README's short table shows the same."""
    for path in (REFERENCE, README):
        defaults = {codes(row[0])[0]: row[1] for row in table("variable", path) if len(row) == 3}
        assert defaults.get(name, SPOKEN.get(name)) in (SPOKEN.get(name, shown(VARIABLES[name])), None)


def test_the_variables_are_those_that_are_read() -> None:
    """In the reference all of them; those without effect are named in prose only. In README some."""
    assert sorted(codes(row[0])[0] for row in table("variable")) == sorted(VARIABLES)
    assert {name for row in table("variable", README) for name in codes(row[0])} <= VARIABLES.keys()


def test_the_example_of_an_environment_file_has_known_variables() -> None:
    """A misspelt one would have no effect, in silence."""
    (example,) = (text for kind, text in fences(REFERENCE) if kind == "ini")
    assert {line.partition("=")[0] for line in example.splitlines()} <= VARIABLES.keys()


# -- tables against the code


def test_the_reasons_are_those_of_the_code() -> None:
    """With outcome, fault and the budget of a retry."""
    budgets = {RetryBudget.NEVER: NONE, RetryBudget.WORKER: "`WORKER_RETRIES`", RetryBudget.INFRA: "`INFRA_RETRIES`"}
    found = {codes(row[0])[0]: row[1:4] for row in table("reason")}
    assert found == {
        reason.value: [reason.outcome.value, reason.fault.value, budgets[reason.retry]] for reason in EndReason
    }


@contract("2.KUBERNETES_EVENTS")
@pytest.mark.parametrize("path", [REFERENCE, REFERENCE.with_suffix(".ko.md")], ids=lambda path: path.name)
def test_the_kubernetes_events_are_those_of_the_code(path: Path) -> None:
    """With their types."""
    found = {codes(row[0])[0]: row[1] for row in table("Event", path)}
    assert found == {reason.value: reason.event_type for reason in EventReason}


@contract("5.why")
def test_the_codes_are_those_of_the_code() -> None:
    """In their order, with what to do; those that need attention are in bold."""
    lines = [
        [f"**`{code}`**" if facts.attention else f"`{code}`", facts.text, ACTORS[facts.actor], facts.advice or NONE]
        for code, facts in ((code, code.facts) for code in StatusCode)
    ]
    assert [list(row) for row in table("code")] == lines


@contract("5.why")
def test_the_guide_says_what_to_do_about_each_code_that_needs_attention() -> None:
    """And what happens next, in the order of the code; its Korean text has the same codes."""
    urgent = {code: code.facts for code in StatusCode if code.facts.attention}
    lines = [[f"`{code}`", facts.text, facts.then, facts.advice] for code, facts in urgent.items()]
    assert [list(row) for row in table("code", PRODUCTION)] == lines
    translated = table("code", PRODUCTION.with_suffix(".ko.md"))
    assert [row[0] for row in translated] == [f"`{code}`" for code in urgent]
    assert all(all(row) for row in translated)


def test_the_short_table_of_reasons_says_the_same() -> None:
    """README groups them by outcome, fault and budget."""
    grouped = {name: row[:3] for row in table("`outcome`", README) for name in codes(row[3].partition(";")[0])}
    assert grouped == {codes(row[0])[0]: row[1:4] for row in table("reason")}


def test_the_fields_of_an_event_are_the_same_in_both_tables() -> None:
    """With their defaults."""
    assert [row[:2] for row in table("field", README)] == [row[:2] for row in table("field") if row[1] not in KINDS]


def test_the_examples_of_entries_are_valid() -> None:
    """By their schemas, and they are those of the schemas."""
    for text in (text for kind, text in fences(README) if kind == "json"):
        entry = json.loads(text)
        name = "dead_letter" if "dead_reason" in entry else "result"
        assert faults(name, entry) == []
        assert entry in schema(name)["examples"]


def test_the_reasons_of_dead_letters_are_those_of_the_code() -> None:
    """No more and no less."""
    assert [codes(row[0])[0] for row in table("`dead_reason`")] == [reason.value for reason in DeadReason]


def test_the_limits_are_those_of_the_code() -> None:
    """Size and number of fields."""
    assert f"at most {MAX_EVENT_BYTES // 1024} KiB and {MAX_FIELDS} fields" in README.read_text(encoding="utf-8")
    assert f"{MAX_EVENT_BYTES // 1024} KiB and {MAX_FIELDS} fields per event" in REFERENCE.read_text(encoding="utf-8")


def test_the_labels_are_those_of_the_code() -> None:
    """Besides managed-by, which stands before the table."""
    labels = [manifest.LABEL_INSTANCE, manifest.LABEL_EVENT, manifest.LABEL_WORKER, manifest.LABEL_ATTEMPT]
    assert [codes(row[0])[0] for row in table("label")] == [*labels, manifest.LABEL_TASK, manifest.LABEL_BUDGET]


@contract("4.env")
def test_the_workers_environment_is_complete() -> None:
    """Every variable that a worker gets, apart from HOME."""
    event = ScaleEvent("e", "1-1", EventType.SCALE_UP, 1, traceparent="00-1", passed_on={"field": "x"})
    given = {variable["name"] for variable in worker_environment(event, manifest.AttemptKey("0" * 10, 1, 1))} - {"HOME"}
    shown = {name for row in table("environment variable") for name in codes(row[0])}
    assert {name.replace("<FIELD>", "FIELD") for name in shown} == given


def test_the_rights_are_those_that_the_controller_asks_for() -> None:
    """Verbs on pods and Events, a look at the namespace, and nothing more."""
    (text,) = (text for kind, text in fences(REFERENCE) if kind == "yaml" and "kind: Role" in text)
    role, binding = yaml.safe_load_all(text)
    look = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": list(VERBS)}
    events = {"apiGroups": [""], "resources": ["events"], "verbs": list(EVENT_VERBS)}
    writes = {"apiGroups": [""], "resources": ["events"], "verbs": list(WRITE_VERBS)}
    assert role["rules"] == [pods, events, look, writes]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_policy_of_the_example_is_one_and_allows_its_event() -> None:
    """The commented file, and the event below it."""
    (text,) = (text for kind, text in fences(REFERENCE) if kind == "yaml" and "profiles:" in text)
    fields = {"profile": "node20", "command": '["npm", "test"]', "env": '{"CI": "true"}'}
    assert decide(parse_policy(text, "policy.yaml"), fields).image == "registry.example.com/ci/node:20"
    with pytest.raises(Violation) as fault:
        decide(parse_policy(text, "policy.yaml"), {"env": '{"GIT_BRANCH": "main"}'})
    assert f"\n{fault.value}\n" in REFERENCE.read_text(encoding="utf-8")


def test_ten_make_targets_are_shown_as_make_help_shows_them() -> None:
    """Name and sentence; the whole list is that of `make help`."""
    found = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {codes(row[0])[0]: row[1] for row in table("target", README)}
    assert len(shown) == 10
    assert shown.items() <= {f"make {name}": does for name, does in found}.items()


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_make_target_that_is_named_is_there(path: Path) -> None:
    """In a block, in a table or in a sentence."""
    found = re.findall(r"^([a-z0-9-]+):.*?## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {
        word for span in codes(path.read_text(encoding="utf-8")) for word in re.findall(r"^make ([a-z0-9-]+)", span)
    }
    assert named <= set(found)


def test_the_layout_names_what_is_there() -> None:
    """Files and packages."""
    for row in table("layer", README):
        first, *others = codes(row[0])
        assert all((ROOT / path).exists() for path in [first, *(f"ottoscaler/{name}" for name in others)])


def test_the_named_log_events_are_in_the_code() -> None:
    """A name that is searched for has to be one that is logged."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ottoscaler").rglob("*.py"))
    shown = [name for head in ("event", "counted event") for row in table(head) for name in codes(row[0])]
    assert [name for name in shown if f'"{name}"' not in code] == []


# -- the Korean texts, links, sizes

PAIRS: Final = [
    pytest.param(path, number, id=f"{path.stem}-{number}") for path in ENGLISH for number in range(len(parts(path)))
]


@pytest.mark.parametrize(("path", "number"), PAIRS)
def test_the_korean_text_has_the_same_part(path: Path, number: int) -> None:
    """The same level, tables of the same shape, the same names in each row and each part."""
    one, other = parts(path)[number], parts(korean(path))[number]
    assert one.level == other.level
    assert _spans(one.tables) == _spans(other.tables)
    assert set(codes(one.text)) == set(codes(other.text))


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.name)
def test_the_korean_text_has_the_same_blocks(path: Path) -> None:
    """Commands, examples and the diagram, letter for letter; and no part more."""
    assert fences(path) == fences(korean(path))
    assert len(parts(path)) == len(parts(korean(path)))


def _spans(tables: Sequence[Table]) -> list[list[list[list[str]]]]:
    return [[[sorted(codes(cell)) for cell in row] for row in each] for each in tables]


def links(path: Path) -> list[str]:
    """Where a document leads to."""
    return re.findall(r"\]\(([^)]+)\)|^\[[^\]]+\]: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    """Those inside the repository; there are no others."""
    targets = [one or other for one, other in links(path)]
    assert [target for target in targets if not (path.parent / target).is_file()] == []


def test_readme_leads_to_every_document() -> None:
    """Each language to the texts in its own."""
    for start, documents in ((README, DOCUMENTS), (korean(README), DOCUMENTS)):
        reached = {(start.parent / (one or other)).resolve() for one, other in links(start)}
        language = [path for path in documents if path.name.endswith(".ko.md") == start.name.endswith(".ko.md")]
        assert set(language) - {start, TESTS} <= reached
        assert TESTS in reached


def test_readme_is_short() -> None:
    """A person reads it from its first line to its last; what is longer has a document of its own."""
    assert len(README.read_bytes()) <= 20 * 1024


def test_no_page_is_left_without_a_test() -> None:
    """A new document belongs into the list of those that are looked at."""
    found = {*ROOT.glob("*.md"), *(ROOT / "deploy").rglob("*.md"), *(ROOT / "tests").rglob("*.md")}
    assert found == set(DOCUMENTS)


#: Words that a reader stumbles over, or that make a person of a program.
STUMBLES: Final = re.compile(r"\b(told|tells|heard|seldom|whoever|anew|for ever|nobody knows|so much)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if ".ko" not in path.name], ids=lambda path: path.name)
def test_the_english_is_plain(path: Path) -> None:
    """As far as a list of words can say."""
    assert STUMBLES.findall(path.read_text(encoding="utf-8")) == []
