"""Algebra on factored updates: sums, truncation, re-factorisation, and the coordinates of element-wise methods."""
