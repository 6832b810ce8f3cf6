"""What everything stands on: errors, files, digests, random numbers, devices; knows no model."""
