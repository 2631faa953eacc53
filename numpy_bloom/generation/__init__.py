"""From logits to text: sampling, and the loop around the model."""
