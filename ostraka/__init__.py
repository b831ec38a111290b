"""Ostraka: a retrieval-augmented generation mesh whose every answer can be checked."""
