"""Random probes drawn in registers, and their dot products with Jacobian-vector products."""
