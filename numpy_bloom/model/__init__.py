"""BLOOM's forward pass: the textbook. Read config, parameters, primitives, alibi, cache, passes,
attention, mlp, block, forward. What runs them is `running.model.Model`."""
