"""PEFT loads an adapter that esmerge wrote, and the model with it gives the logits of the model that `esmerge apply` wrote.

    python peft_outputs.py BASE ADAPTER APPLIED

Exits with 1 and says why if a key is missing or not expected, or if logits differ by more than 1e-5.
"""

import sys
import warnings

import torch
import transformers
from peft import PeftModel

TOLERANCE = 1e-5


def logits(model):
    length = min(12, getattr(model.config, "max_position_embeddings", 12))
    ids = torch.arange(2 * length).reshape(2, length) % model.config.vocab_size
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def main(base, adapter, applied):
    load = transformers.AutoModelForCausalLM.from_pretrained
    plain = logits(load(base, dtype=torch.float32))
    want = logits(load(applied, dtype=torch.float32))
    # an adapter with a key too many or too few must not load with a mere warning
    warnings.filterwarnings("error", message=".*adapter keys.*")
    model = PeftModel.from_pretrained(load(base, dtype=torch.float32), adapter)
    found = model.load_adapter(adapter, adapter_name="again")
    assert not found.unexpected_keys, found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora_" in key and ".again." in key], found.missing_keys
    # an embedding that is the head too: PEFT's layer changes the one, and merging both
    if any("lora_embedding" in key for key in model.state_dict()):
        model = model.merge_and_unload(adapter_names=["default"])
    got = logits(model)
    error, moved = ((got - want).norm() / want.norm()).item(), ((plain - want).norm() / want.norm()).item()
    print(f"{error:.1e} of the logits with the adapter, {moved:.1e} without")
    assert moved > 100 * TOLERANCE, "the adapter changes nothing, so that this says nothing"
    if error > TOLERANCE:
        sys.exit(f"logits differ by {error:.1e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main(*sys.argv[1:])
