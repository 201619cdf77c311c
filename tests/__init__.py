"""The tests; a package, so that helpers are imported by name and a bare `pytest` finds the program."""
