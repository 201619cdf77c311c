"""Image references and patterns: what each part of a text becomes, and where the bounds are."""

from __future__ import annotations

import pytest

from ottoscaler.core.images import Image, parse_image, parse_pattern
from tests.core.policies import DIGEST

OTHER_DIGEST = f"sha256:{'f' * 64}"


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("node", Image("docker.io", "library/node", "latest", "")),
        ("node.js:20", Image("docker.io", "library/node.js", "20", "")),
        ("team/node", Image("docker.io", "team/node", "latest", "")),
        ("team/a.b/c", Image("docker.io", "team/a.b/c", "latest", "")),
        ("docker.io/node", Image("docker.io", "library/node", "latest", "")),
        ("registry-1.docker.io/node", Image("docker.io", "library/node", "latest", "")),
        ("registry.hub.docker.com/team/node", Image("docker.io", "team/node", "latest", "")),
        ("localhost/node", Image("localhost", "node", "latest", "")),
        ("registry:5000/node", Image("registry:5000", "node", "latest", "")),
        ("registry:5000/node:1", Image("registry:5000", "node", "1", "")),
        ("[::1]:5000/node", Image("[::1]:5000", "node", "latest", "")),
        ("a.io/x_y/x__y/x--y.z:T_1.2-3", Image("a.io", "x_y/x__y/x--y.z", "T_1.2-3", "")),
        (f"a.io/x:1@{DIGEST}", Image("a.io", "x", "1", DIGEST)),
        (f"a.io/x@{DIGEST}", Image("a.io", "x", "", DIGEST)),
        (f"a.io/x:{'t' * 128}", Image("a.io", "x", "t" * 128, "")),
        (f"a.io/{'x' * 250}", Image("a.io", "x" * 250, "latest", "")),
    ],
)
def test_a_reference_has_these_parts(text: str, image: Image) -> None:
    """With what it leaves out."""
    assert parse_image(text) == image


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", ":1", "/", "/x", "x/", "a.io/", "a.io/:1", "a.io/x:", "a.io/x@", "a.io/x:1:2", "a.io/x.",
        "a.io/.x", "a.io/x___y", "a.io/x..y", "a.io/-x", "-a.io/x", "a.io-/x", "a.io:/x", "a.io:123456/x", "[::1/x",
        "a.io/x:.1", "a.io/x:-1", f"a.io/x@{DIGEST}0", f"a.io/x@x{DIGEST}", f"a.io/{'x' * 251}", f"a.io/x:{'t' * 129}",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_none(text: str) -> None:
    """A name of 255 characters, and a tag of 128, are the longest; 256 and 129 are none."""
    assert parse_image(text) is None


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        (f"a.io/x@{DIGEST}", f"a.io/x@{DIGEST}", True),
        (f"a.io/x@{DIGEST}", f"a.io/x:1@{DIGEST}", True),
        (f"a.io/x@{DIGEST}", f"a.io/x@{OTHER_DIGEST}", False),
        ("a.io/x@sha256:*", f"a.io/x@{OTHER_DIGEST}", True),
        ("a.io/x@sha256:*", "a.io/x", False),
        ("a.io/x", f"a.io/x@{DIGEST}", True),
        ("a.io/x", "a.io/x:any", True),
        ("a.io/x:1", f"a.io/x:1@{DIGEST}", False),
        ("a.io/x:1", "a.io/x:1", True),
        ("a.io/x:*", "a.io/x", True),
        ("a.io/x:*", f"a.io/x@{DIGEST}", False),
        ("registry:5000/x", "registry:5000/x", True),
        ("registry:5000/x", "registry:5001/x", False),
        ("index.docker.io/x", "x", True),
        ("localhost/x", "x", False),
        ("node.js", "node.js", True),
        ("*", "library/x", True),
        ("*", "team/x", False),
        (f"a.io/x:{'*' * 128}", f"a.io/x:{'1' * 128}", True),
    ],
)
def test_a_pattern_says_which_tag_and_which_digest(pattern: str, image: str, matches: bool) -> None:
    """A digest says what runs; a pattern with another one, or with a tag, does not allow it."""
    rule, reference = parse_pattern(pattern), parse_image(image)
    assert rule is not None
    assert reference is not None
    assert rule.text == pattern
    assert rule.matches(reference) is matches


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a.io/:1", "a.io/x:", f"a.io/x:{'*' * 129}", "a.io/x:1@sha256:*", f"a.io/x:1@{DIGEST}", "a.io/x@",
     "a.io/x@sha256:**", "a.io/x/**y", "a.io/***", "a.io//x", "a.io/x y", "a.io/X", "a.io/x:1/*"],
)  # fmt: skip
def test_what_is_no_pattern_is_none(text: str) -> None:
    """A pattern with a tag and a digest would say two things."""
    assert parse_pattern(text) is None
