"""Quadlet units as values and as text. Pure: no process, no file, no clock."""
