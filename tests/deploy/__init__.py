"""Tests of the image, the manifests and the scripts of a developer's environment."""
