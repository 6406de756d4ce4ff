"""Curation: verdicts on generations, which themselves are never changed."""
