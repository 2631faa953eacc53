"""BLOOM's forward pass: the textbook. Begin with `forward`."""
