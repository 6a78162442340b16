"""The ``acme`` backend."""
