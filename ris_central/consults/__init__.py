"""Consults between clinics and the reference centre."""
