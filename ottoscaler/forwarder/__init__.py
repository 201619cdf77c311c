"""The way of a log line from a worker to the log handler. What decides is pure; delivery.py has the event loop."""
