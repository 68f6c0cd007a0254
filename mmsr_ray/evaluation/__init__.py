"""Answers out: what a set of questions says about a policy, and where that is written."""
