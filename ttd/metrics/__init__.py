"""Pure functions from arrays to numbers, each with its source, its direction and its chance level.

Scores come per picture, so that every mean gets an interval over pictures (``uncertainty``) and a control whose pairs
are wrong on purpose. ``table`` knows what each figure is called and keeps value, interval, chance and control together.
"""
