"""selfserve: a self-managed serving system for machine-learned models in a public cloud."""

__version__ = "0.1.0"
