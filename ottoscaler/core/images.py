"""Image references, and the patterns that allow them.

Both are parsed into registry, path, tag and digest, and compared part by part: text that only looks like an allowed
registry or path matches nothing. The other names of Docker Hub are replaced first, and what is compared is what the
pod gets.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

DOCKER_HUB: Final = "docker.io"
_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

#: https://github.com/distribution/reference: host names in lower case, with a port, or an IPv6 address in brackets.
_REGISTRY: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:]{2,39}\])(?::[0-9]{1,5})?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_NAME: Final = 255

#: The same with `*`.
_PATTERN_COMPONENT: Final = re.compile(r"[a-z0-9._*-]+")
_PATTERN_TAG: Final = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
ANY_DIGEST: Final = "sha256:*"


class Image(msgspec.Struct, frozen=True):
    """A reference, normalised. `tag` is empty only where there is a digest."""

    registry: str
    path: str
    tag: str
    digest: str

    def __str__(self) -> str:
        name = f"{self.registry}/{self.path}"
        return name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


class ImagePattern(msgspec.Struct, frozen=True):
    """Which images are allowed. `tag` None: any tag or digest; `digest` None: no digest is needed."""

    text: str
    registry: str
    path: re.Pattern[str]
    tag: re.Pattern[str] | None
    digest: str | None

    def matches(self, image: Image) -> bool:
        """Does this pattern allow the image? Where there is a digest, it says what runs, and a tag says nothing: a
        pattern with a tag allows no digest.
        """
        if image.registry != self.registry or not self.path.fullmatch(image.path):
            return False
        if self.digest is not None:
            return bool(image.digest) and self.digest in (ANY_DIGEST, image.digest)
        return self.tag is None or (not image.digest and bool(self.tag.fullmatch(image.tag)))


def parse_image(text: str) -> Image | None:
    """The reference, with the registry, `library/` and `latest` where it leaves them out; None if it is none."""
    parts = _split_reference(text)
    if parts is None:
        return None
    registry, path, tag, digest = parts
    if not (_REGISTRY.fullmatch(registry) and _PATH.fullmatch(path)) or len(registry) + len(path) + 1 > _MAX_NAME:
        return None
    if (tag is not None and not _TAG.fullmatch(tag)) or (digest is not None and not _DIGEST.fullmatch(digest)):
        return None
    return Image(registry, path, tag or ("" if digest else "latest"), digest or "")


def parse_pattern(text: str) -> ImagePattern | None:
    """The pattern: `*` stands for anything within one component or the tag, `**` for one or more components; the
    registry is literal. None if it is none.
    """
    parts = _split_reference(text)
    if parts is None:
        return None
    registry, path, tag, digest = parts
    components = path.split("/")
    if not _REGISTRY.fullmatch(registry) or not all(_PATTERN_COMPONENT.fullmatch(one) for one in components):
        return None
    if any("**" in one and one != "**" for one in components) or (tag is not None and not _PATTERN_TAG.fullmatch(tag)):
        return None
    if digest is not None and digest != ANY_DIGEST and not _DIGEST.fullmatch(digest):
        return None
    if tag is not None and digest is not None:  # the tag would say nothing
        return None
    regex = "/".join(".+" if one == "**" else _star_pattern(one) for one in components)
    return ImagePattern(
        text, registry, re.compile(regex), None if tag is None else re.compile(_star_pattern(tag)), digest
    )


def _split_reference(text: str) -> tuple[str, str, str | None, str | None] | None:
    """Registry, path, tag and digest; the last two None where they are left out. None for an empty name."""
    name, at, digest = text.partition("@")
    folder, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = folder + slash + last
    first, rest_follows, rest = name.partition("/")
    if rest_follows and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, rest
    else:
        registry, path = DOCKER_HUB, name
    if registry in _HUB_NAMES:
        registry = DOCKER_HUB
        path = path if "/" in path or path == "**" else f"library/{path}"
    return (registry, path, tag if colon else None, digest if at else None) if path else None


def _star_pattern(text: str) -> str:
    return "[^/]*".join(re.escape(part) for part in text.split("*"))
