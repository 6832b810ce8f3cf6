"""The table of a study's finished runs, and its lineage."""
