"""The benchmark: a backend's own speed beside its alternatives' and the limits of the machine."""
