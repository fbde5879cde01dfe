"""Probes drawn where they are used, and their dot products with Jacobian products."""
