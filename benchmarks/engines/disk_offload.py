"""Engine: transformers with everything offloaded to disk by accelerate, in bfloat16.

Each module's weights are read when it runs and let go of afterwards.
https://huggingface.co/docs/accelerate/concept_guides/big_model_inference
"""

from pathlib import Path

import torch
from accelerate import disk_offload, init_empty_weights
from transformers import AutoConfig, BloomForCausalLM

from engines.whole import Cached


def open_engine(path: Path, threads: int) -> Cached:
    """A model without weights over a folder that accelerate has written."""
    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(path)
    with init_empty_weights():
        model = BloomForCausalLM._from_config(config, dtype=torch.bfloat16)
    disk_offload(model, offload_dir=path, execution_device=torch.device("cpu"))
    return Cached(model)
