"""Threads and order: which thread does what, and when. Knows the ports, no SDK."""
