"""The rows that need this repository: its examples, and the engine."""
