"""Bringing what a run has made to the Hub, and fetching it again."""
