"""What part of the room for pods each tenant has."""

from __future__ import annotations

from typing import Final

import msgspec

#: The longest name of a tenant, characters: each of its pods carries it, and it is shown.
MAX_TENANT: Final = 128
#: The largest weight: as many turns in a row, for which all other tenants wait.
MAX_WEIGHT: Final = 100


class Share(msgspec.Struct, frozen=True):
    """What one tenant may have. `weight`: its turns in each round. `max_workers`: its live pods in the instance;
    0: no limit.
    """

    weight: int = 1
    max_workers: int = 0


class Shares(msgspec.Struct, frozen=True):
    """What each tenant may have: the named ones, and every other one."""

    default: Share = Share()
    named: dict[str, Share] = {}

    def of(self, tenant: str) -> Share:
        """The share of this tenant."""
        return self.named.get(tenant, self.default)


#: Without a policy all tenants are alike.
EQUAL_SHARES: Final = Shares()
