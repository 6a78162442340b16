"""A module of a suite that does not load."""

raise OSError("planted at import")
