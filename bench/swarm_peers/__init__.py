"""The programs that bench/swarm.py compares, and what they fetch."""
