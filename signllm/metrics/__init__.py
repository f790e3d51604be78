"""Scores of translations, their significance, and the tables that they are read from."""
