"""What events may override: the policy of POLICY_FILE, and the configuration's own limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ottoscaler.adapters.policy_file import PolicyFile
from ottoscaler.core.policy import Rules
from ottoscaler.core.shares import EQUAL_SHARES, Shares
from ottoscaler.settings import Settings


def rules_of(settings: Settings) -> Callable[[], Rules]:
    """Returns the rules in force, each time that it is called. Raises ConfigError for a policy that cannot be read."""
    max_deadline_s = settings.worker.deadline_s
    if settings.flow.policy_file is None:
        constant = Rules(max_deadline_s)
        return lambda: constant
    file = PolicyFile(settings.flow.policy_file)
    return lambda: Rules(max_deadline_s, file.current())


def masks_of(rules: Rules) -> Sequence[str]:
    """What is masked in logs by these rules, beside what always is: regular expressions."""
    return () if rules.policy is None else rules.policy.log_masks


def shares_of(rules: Callable[[], Rules]) -> Callable[[], Shares]:
    """Returns what each tenant may have by the policy in force, each time that it is called."""

    def shares() -> Shares:
        policy = rules().policy
        return EQUAL_SHARES if policy is None else policy.tenants

    return shares
