"""Photographs of people: reading, writing, metadata, kinds of arrays."""
