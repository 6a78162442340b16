"""The ``cpu`` backend: torch on the host's processor."""
