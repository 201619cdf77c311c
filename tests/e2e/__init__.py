"""The process itself against a real Redis and a real Kubernetes."""
