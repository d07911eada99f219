"""Wherry: a container engine, an image registry and a Kubernetes you can start, fork, rewind and question."""

__version__ = "0.1.0"
KUBERNETES_VERSION = "v1.37.0+wherry1"
