"""Scores of a method over a data set: every picture once, means over pictures, reports one can trust."""
