"""Placeholder during construction."""
compile = None
