"""Jitted, vmapped maths on arrays; knows nothing of models or files."""
