"""The recipe: what a user declares, read strictly and with all its problems at once."""
