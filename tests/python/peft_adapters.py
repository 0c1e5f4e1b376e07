"""PEFT loads the adapters of an ESM++ output, and the model's features are those that esmerge states.

    python peft_adapters.py MERGED FEATURES

MERGED is the folder that `esmerge merge` wrote. FEATURES is a safetensors file with, for every task,
`<task>.input_ids` and `<task>.attention_mask`, or `<task>.pixel_values`, and `<task>.features`: what esmerge gives
with that task's expert in every routed layer. Exits with 1 and says why if a feature differs by more than 1e-4.
"""

import sys
import warnings

import torch
from peft import PeftModel
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-4


def load(folder):
    """The model, in the class that its configuration names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32)


def features(model, data, task):
    """As esmerge pools them. The adapters are in the modules of the model, so that a head can be left out."""
    model = model.get_base_model()
    inner = getattr(model, model.base_model_prefix, model)
    if f"{task}.pixel_values" in data:
        pixels = data[f"{task}.pixel_values"]
        if model.config.model_type == "clip_vision_model":
            return model(pixel_values=pixels).image_embeds
        return inner(pixel_values=pixels).last_hidden_state[:, 0]
    ids, mask = data[f"{task}.input_ids"].long(), data[f"{task}.attention_mask"].long()
    hidden = inner(input_ids=ids, attention_mask=mask).last_hidden_state
    if model.config.model_type == "llama":
        return hidden[torch.arange(len(ids)), mask.sum(1) - 1]
    weight = mask.unsqueeze(-1).float()
    return (hidden * weight).sum(1) / weight.sum(1)


def main(folder, file):
    data = load_file(file)
    tasks = sorted(key.removesuffix(".features") for key in data if key.endswith(".features"))
    # an adapter with a key too many or too few must not load with a mere warning
    warnings.filterwarnings("error", message=".*adapter keys.*")
    model = None
    worst = 0.0
    for task in tasks:
        adapter = f"{folder}/adapters/{task}"
        if model is None:
            model = PeftModel.from_pretrained(load(folder), adapter, adapter_name=task)
        else:
            found = model.load_adapter(adapter, adapter_name=task)
            assert not found.unexpected_keys, found.unexpected_keys
        model.set_adapter(task)
        model.eval()
        with torch.no_grad():
            got, want = features(model, data, task), data[f"{task}.features"]
            with model.disable_adapter():
                plain = features(model, data, task)
        error = ((got - want).norm() / want.norm()).item()
        moved = ((plain - want).norm() / want.norm()).item()
        print(f"{task}: {error:.1e} of the features with the adapter, {moved:.1e} without")
        assert moved > 10 * TOLERANCE, "the adapter changes nothing, so that this says nothing"
        worst = max(worst, error)
    if worst > TOLERANCE:
        sys.exit(f"features differ by {worst:.1e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main(*sys.argv[1:])
