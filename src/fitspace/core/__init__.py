"""Errors, files, digests, random numbers and devices, which all rooms use; knows no model."""
