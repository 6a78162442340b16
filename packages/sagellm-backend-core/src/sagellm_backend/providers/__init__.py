"""Providers under the module names of Protocol v0.1."""
