"""Treatments: they change weights, masks or optimizer state, and report what they changed."""
