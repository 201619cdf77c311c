"""The words by which the API server refuses a create that it may accept later: the same HTTP status, 403, is also its
answer to a pod that it will never accept.
"""

from __future__ import annotations

from typing import Final

#: A ResourceQuota is used up, or not counted yet.
QUOTA: Final = ("exceeded quota", "insufficient quota", "status unknown for quota")
#: The namespace goes away.
TERMINATING: Final = ("being terminated",)
#: Our user has not the right.
RIGHTS: Final = ("cannot create resource", "cannot impersonate resource")
