"""The assets, a module per step of the method."""
