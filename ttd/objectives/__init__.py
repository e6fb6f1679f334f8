"""Objectives: modules whose ``forward(batch)`` returns named losses."""
