"""Scores and what they mean: metrics, protocols, one scorer, significance, examples of mistakes."""
