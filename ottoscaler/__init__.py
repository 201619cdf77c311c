"""Ottoscaler reads scaling events from a Redis Stream and runs worker pods in Kubernetes, one thread per worker.

This file must exist: without it the script `ottoscaler.py` beside the package would shadow it.
"""

__version__ = "0.1.0"
