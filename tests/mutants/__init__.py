"""Mistakes of the protocol, kept as patches:
each has to turn the tests that it names red, or those tests prove nothing.
"""
