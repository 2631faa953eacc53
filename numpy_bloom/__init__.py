"""The BLOOM language model as a forward pass in plain NumPy.

import numpy_bloom

with numpy_bloom.load() as model:  # the demo model
    for token in model.generate("Todos los seres humanos nacen"):
        print(token.text, end="")
"""

from numpy_bloom import interrupts  # noqa: F401  (before all that takes time)
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.loading import load

__version__ = "0.1.0"
__all__ = ["Bloom", "NumpyBloomError", "OptionError", "load"]
