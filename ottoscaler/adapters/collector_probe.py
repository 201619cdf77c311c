"""Does a trace collector take traces? One request without a span, and without the packages of traces, which need not be
installed where `doctor` runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import urllib3

from ottoscaler.core.wording import one_line
from ottoscaler.errors import CollectorUnavailable

TIMEOUT_S: Final = 3.0


class NoHttp(CollectorUnavailable):
    """Something listens there, and answers no HTTP."""


class NoTrust(CollectorUnavailable):
    """There is no TLS, or none that we trust."""


def ask_once(url: str, headers: Iterable[tuple[str, str]]) -> int:
    """The status that the collector answers to no span at all. Raises CollectorUnavailable with what went wrong, of
    which NoHttp and NoTrust are two. `url`: with the path of traces; `headers`: see settings_traces.
    """
    with urllib3.PoolManager(maxsize=1, retries=False, timeout=TIMEOUT_S) as pool:
        try:
            answer = pool.request(
                "POST", url, body=b"", redirect=False, preload_content=False,
                headers={"Content-Type": "application/x-protobuf", **dict(headers)},
            )  # fmt: skip
            with answer:
                return answer.status
        except urllib3.exceptions.SSLError as error:
            raise NoTrust(one_line(str(error))) from error
        except urllib3.exceptions.ProtocolError as error:
            raise NoHttp(one_line(str(error))) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise CollectorUnavailable(one_line(str(error))) from error
