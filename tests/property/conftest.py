"""Hypothesis without its database. A run leaves no files, and a failure prints how to repeat it."""

from hypothesis import settings

settings.register_profile("orderstream", database=None, deadline=None, print_blob=True)
settings.load_profile("orderstream")
