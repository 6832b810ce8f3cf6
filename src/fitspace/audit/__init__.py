"""Where a number comes from, and whether all of it is still as it was recorded."""
