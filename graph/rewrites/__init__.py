"""The rewrites, one file for each family of ops, and the engine that applies them."""
