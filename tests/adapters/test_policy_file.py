"""POLICY_FILE: YAML with lines, read again when it changes, and never replaced by something broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from ottoscaler.adapters.policy_file import PolicyFile, load, parse_policy
from ottoscaler.core.policy import Policy
from ottoscaler.core.policy_reader import read_policy
from ottoscaler.errors import ConfigError
from tests.core.policies import EXAMPLE
from tests.flow.conftest import Lines

contract = pytest.mark.contract


def written(path: Path, text: str) -> Path:
    """A file that is replaced as a whole, as a ConfigMap is."""
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)
    return path


def policy_text(memory: str) -> str:
    """A small policy."""
    return f"version: 1\nmax: {{memory: {memory}}}\nprofiles:\n  plain: {{overrides: [memory]}}\n"


def lines(text: str) -> list[str]:
    """What is wrong with a file of that text."""
    with pytest.raises(ConfigError) as error:
        parse_policy(text, "policy.yaml")
    return str(error.value).splitlines()


def test_a_file_says_what_its_data_say() -> None:
    """The whole example, through YAML."""
    found, expected = parse_policy(yaml.safe_dump(EXAMPLE), "p"), read_policy(EXAMPLE)
    assert isinstance(expected, Policy)
    assert found == expected


@contract("2.POLICY_FILE")
def test_faults_have_their_lines() -> None:
    """All of them, in the order of the file."""
    assert lines("version: 2\nimages:\n  allow:\n    - a b\n  deny: []\nmax: {retries: 99}\n") == [
        "policy.yaml:1: version: 1 is expected",
        'policy.yaml:4: images.allow[0]: "a b"; a pattern like registry.example.com/team/** is expected',
        "policy.yaml:5: images.deny: unknown; one of allow, digest_only is expected",
        'policy.yaml:6: max.retries: "99"; a whole number from 0 to 10 is expected',
    ]


@contract("2.POLICY_FILE")
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("version: 1\nmax: {}\nversion: 1\n", "policy.yaml:3: version: is there twice, first in line 1"),
        ("version: 1\nmax: &a {cpu: *a}\n", "policy.yaml:2: max.cpu: an alias of what it is in"),
        ("version: 1\nmax: [\n", "policy.yaml:3: no YAML: "),
        ("version: !!python/object:os.system 1\n", "policy.yaml:1: version: 1 is expected"),
        ("version: 1\n---\nversion: 1\n", "policy.yaml:2: no YAML: "),
        ("", "policy.yaml:1: version is missing; 1 is expected"),
        ("version: 1\n1: x\n", "policy.yaml:1: the name \"1\" is no text: quote it"),
        ("version: 1\n? [a]\n: b\n", "policy.yaml:2: tag:yaml.org,2002:seq: unknown; one of "),
    ],
)  # fmt: skip
def test_what_yaml_would_let_pass_is_refused(text: str, fault: str) -> None:
    """A name twice, loops, objects, several documents."""
    assert any(line.startswith(fault) for line in lines(text)), lines(text)


@contract("2.POLICY_FILE")
@pytest.mark.parametrize(
    "value",
    ["!!int foo", "!!float x", "!!bool maybe", "0x_", "0b_", "9" * 5000, "0x" + "f" * 5000, "1:30", "010", "!!null x"],
    ids=lambda value: value[:12],
)
def test_what_is_no_value_of_its_form_is_a_fault_with_its_line(value: str) -> None:
    """Numbers of YAML 1.1 too, which mean another thing than they show."""
    (fault,) = lines(f"version: 1\nmax:\n  priority: {value}\n")
    assert fault.startswith("policy.yaml:3: max.priority: "), fault


@contract("2.POLICY_FILE")
def test_aliases_cannot_make_a_small_file_large() -> None:
    """The thread that reads the file must go on."""
    levels = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
    (fault,) = lines(f"a0: &a0 [1]\n{levels}")
    assert fault == "policy.yaml: no YAML: more than 100000 values, with those that aliases repeat"


@contract("2.POLICY_FILE")
def test_what_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller short of file descriptors must not go on with the policy of before for good."""
    log, path = Lines(), written(tmp_path / "policy.yaml", policy_text("1Gi"))
    file = PolicyFile(str(path))
    written(path, policy_text("512Mi"))

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", fail)
        assert [file.current().max_memory for _ in range(3)] == [2**30] * 3
    assert len(log.of("policy.invalid")) == 1
    assert file.current().max_memory == 2**29


@contract("2.POLICY_FILE")
def test_a_change_is_seen_at_the_next_use(tmp_path: Path) -> None:
    """Written in place, replaced, or behind a symbolic link as in a mounted ConfigMap."""
    path = written(tmp_path / "policy.yaml", policy_text("1Gi"))
    file = PolicyFile(str(path))
    assert file.current().max_memory == 2**30
    written(path, policy_text("2Gi"))
    assert file.current().max_memory == 2 * 2**30
    path.write_text(policy_text("512Mi"))
    assert file.current().max_memory == 2**29


@contract("2.POLICY_FILE")
def test_a_config_map_is_followed(tmp_path: Path) -> None:
    """The kubelet swaps a link to a folder; each file in it may have any time and the same size."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.utime(written(tmp_path / name / "policy.yaml", policy_text("1Gi" if name == "a" else "4Gi")), (1, 1))
    (tmp_path / "..data").symlink_to("a")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    file = PolicyFile(str(tmp_path / "policy.yaml"))
    assert file.current().max_memory == 2**30
    (tmp_path / "..new").symlink_to("b")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert file.current().max_memory == 4 * 2**30


@contract("2.POLICY_FILE")
@pytest.mark.parametrize("text", ["version: 2\n", "version: [\n", None, "\xff" * 3])
def test_a_broken_one_keeps_the_last_and_is_logged_once(tmp_path: Path, text: str | None) -> None:
    """A slip in the file changes nothing for the events that come; when it is mended, that counts."""
    log, path = Lines(), written(tmp_path / "policy.yaml", policy_text("1Gi"))
    file = PolicyFile(str(path))
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("latin-1"))
    assert [file.current().max_memory for _ in range(3)] == [2**30] * 3
    assert len(log.of("policy.invalid")) == 1
    written(path, policy_text("2Gi"))
    assert file.current().max_memory == 2 * 2**30
    assert len(log.of("policy.invalid")) == 1


@contract("2.POLICY_FILE")
def test_one_that_is_missing_at_the_start_is_a_fault(tmp_path: Path) -> None:
    """Without it everything would be refused, or nothing."""
    with pytest.raises(ConfigError, match="expected a file that can be read: No such file"):
        load(str(tmp_path / "nothing.yaml"))
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="expected at most 1048576 bytes"):
        load(str(tmp_path / "large"))
