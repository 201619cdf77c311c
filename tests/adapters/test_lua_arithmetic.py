"""What the scripts compute by themselves, held against Python: dates, and the order of entries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from ottoscaler.adapters.scripts import SCRIPT_MODULES, source
from ottoscaler.local.redis import EmbeddedRedis

SOURCE = source("common.lua", *(f"{port}.lua" for port in SCRIPT_MODULES)).decode()
#: The edges of days, months, years, leap years and centuries, and some times between; seconds since the epoch.
MOMENTS = [
    datetime(*parts, tzinfo=UTC)
    for year in (1970, 1999, 2000, 2023, 2024, 2025, 2026, 2028, 2100, 2199)
    for parts in (
        (year, 1, 1), (year, 1, 31, 23, 59, 59, 999000), (year, 2, 28, 23, 59, 59), (year, 3, 1), (year, 4, 30, 12, 34),
        (year, 7, 4, 1, 2, 3, 4000), (year, 10, 31), (year, 11, 27, 18, 0, 0, 50000), (year, 12, 31, 23, 59, 59, 9000),
    )
] + [datetime(2024, 2, 29, tzinfo=UTC), datetime(2000, 2, 29, 12, tzinfo=UTC)]  # fmt: skip


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Calls a function of the script with some arguments, all of them texts."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    with redis.Redis(server.host, server.port, decode_responses=True) as client:

        def run(head: str, use: str, *arguments: str) -> Any:
            indent = re.escape(re.match(r" *", head)[0])  # type: ignore[index]
            found = re.search(rf"{re.escape(head)}.*?\n{indent}end\n", SOURCE, re.DOTALL)
            assert found is not None
            return client.eval(f"{found[0]}\nreturn {use}", 0, *arguments)

        yield run
    server.close()


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_stamp_is_the_time_in_utc(call: Callable[..., Any], moment: datetime) -> None:
    """RFC 3339 with milliseconds, as Python writes it."""
    wanted = moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
    ms = round(moment.timestamp() * 1000)
    assert call("local function rfc3339(ms)", "rfc3339(tonumber(ARGV[1]))", str(ms)) == wanted


IDS = [
    "0-0",
    "0-1",
    "0-9",
    "0-10",
    "9-5",
    "10-0",
    "10-3",
    "11-0",
    "1795803214119-0",
    "1795803214119-2",
    "1795803214119-10",
]


@pytest.mark.parametrize("first", IDS)
def test_entries_are_in_the_order_of_their_numbers(call: Callable[..., Any], first: str) -> None:
    """And not in that of their texts: `10-0` comes after `9-5`."""
    use = "is_older(ARGV[1], ARGV[2]) and 1 or 0"
    found = [call("local function is_older(a, b)", use, first, second) for second in IDS]
    assert found == [int(IDS.index(first) < number) for number in range(len(IDS))]
