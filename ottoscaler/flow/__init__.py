"""Threads and order: who does what when; knows the ports, no SDK."""
