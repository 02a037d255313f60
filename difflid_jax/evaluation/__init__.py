"""Scores of dehazing methods on data sets, their reports, and probes of a prior's features."""
