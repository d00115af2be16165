"""Eighteen programs whose log p(y) is known by other means, and five guides of each."""
