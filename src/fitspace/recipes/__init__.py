"""The embedded models, made from nothing."""
