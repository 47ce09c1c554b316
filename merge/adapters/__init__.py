"""Adapters in and out: read and check posteriors, verify a merge on them, assemble a posterior of what was merged."""
