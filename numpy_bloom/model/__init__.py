"""BLOOM's forward pass: the textbook. Read config, parameters, primitives, alibi, attention, mlp,
block, forward."""
