"""Studies: one module a notebook, which computes the tidy tables that the notebook shows."""
