"""What the tests share: checkpoints, models made from them, and what is done to both."""
