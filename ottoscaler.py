"""The script: hands over to the commands in ottoscaler.cli and ends with their exit code."""

import sys

from ottoscaler.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
