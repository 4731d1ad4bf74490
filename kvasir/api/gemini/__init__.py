"""Gemini's wire format, as Google's Developer API speaks it."""
