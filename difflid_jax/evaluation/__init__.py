"""Scores of dehazing methods on data sets, their reports, and what a prior's features tell."""
