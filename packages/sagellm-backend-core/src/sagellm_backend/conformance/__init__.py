"""Conformance: what a provider claims, proven case by case."""
