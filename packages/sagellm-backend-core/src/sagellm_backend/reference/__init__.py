"""The reference backend in NumPy: two simulated devices that show what the contract means."""
