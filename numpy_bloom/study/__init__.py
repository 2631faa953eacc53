"""Every number of a forward pass: its name, its value, where it comes from and what it does."""
