"""What finished runs amount to: the table of a study, and what made it."""
