"""Merging with Kronecker-factored curvature: the closed form, under another prior, and the two-sided linear system."""
