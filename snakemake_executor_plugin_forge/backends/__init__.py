"""Backends, the places where jobs run. Each is a folder; the registry finds them."""
