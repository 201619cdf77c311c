"""Tests of the embedded Redis and the embedded Kubernetes."""
