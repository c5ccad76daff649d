"""Saying it: facts and outcome -> status. Pure."""
