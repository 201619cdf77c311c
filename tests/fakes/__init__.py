"""Full fakes of the ports. They pass the contract suites of the real adapters (tests/adapters): flow may trust them."""
