"""A model that is ready to run: its passes, and the memory that weights and runs share."""
