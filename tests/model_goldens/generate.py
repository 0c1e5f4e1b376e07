"""Makes the model goldens in this folder: one tiny random model per architecture, run by Hugging Face transformers.

    pip install torch transformers safetensors && python generate.py

Each folder has `config.json` and `model.safetensors` as transformers writes them; the file of its name beside it has the inputs,
`features` (as the architecture pools them by default), and `<weight>.input`, what enters some linear layers (padding
removed). `open_clip` is the CLIP tower under OpenCLIP's names. Made once with torch 2.15 and transformers 5.23; the files
are what counts.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel, MistralConfig,
    MistralModel, Qwen2Config, Qwen2Model, RobertaConfig, RobertaModel, ViTConfig, ViTModel,
)

HERE = pathlib.Path(__file__).parent
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
TEXT = dict(SIZES, vocab_size=40, max_position_embeddings=32)


def randomised(model):
    """Weights of ordinary size everywhere, so that no part of a block hides behind another."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            if p.dim() >= 2:
                p.copy_(noise * 0.3)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            else:
                p.copy_(0.2 * noise)
    return model.eval()


def captured(model, names, mask, run):
    """Runs `run` and gives its result and the inputs of the modules in `names`."""
    inputs = {}

    def hook(name):
        def see(module, args):
            x = args[0].detach().reshape(-1, args[0].shape[-1])
            inputs[f"{names[name]}.input"] = x[mask.reshape(-1).bool()] if mask is not None else x
        return see

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in names]
    with torch.no_grad():
        result = run()
    for handle in handles:
        handle.remove()
    return result, inputs


def save(folder, model, tensors):
    folder = HERE / folder
    model.save_pretrained(folder)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, folder.with_suffix(".safetensors"))


def text_inputs(pad):
    torch.manual_seed(2)
    ids = torch.randint(5, 40, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 3:] = 0
    ids[mask == 0] = pad
    return ids, mask


def encoder(folder, model, pad):
    ids, mask = text_inputs(pad)
    names = {n: f"{n}.weight" for n in ["encoder.layer.1.attention.self.query", "encoder.layer.1.output.dense"]}
    model = randomised(model)
    out, inputs = captured(model, names, mask, lambda: model(input_ids=ids, attention_mask=mask))
    weights = mask.unsqueeze(-1).float()
    features = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
    save(folder, model, dict(inputs, input_ids=ids, attention_mask=mask, features=features))


def decoder(folder, model):
    ids, mask = text_inputs(0)
    names = {n: f"{n}.weight" for n in ["layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]}
    model = randomised(model)
    out, inputs = captured(model, names, mask, lambda: model(input_ids=ids, attention_mask=mask))
    last = mask.sum(1) - 1
    features = out.last_hidden_state[torch.arange(3), last]
    save(folder, model, dict(inputs, input_ids=ids, attention_mask=mask, features=features))


def clip():
    config = CLIPVisionConfig(**SIZES, image_size=10, patch_size=4, projection_dim=12)
    model = randomised(CLIPVisionModelWithProjection(config))
    pixels = torch.randn(2, 3, 10, 10)
    modules = [n for n, _ in model.named_modules() if n.endswith(("layers.1.self_attn.q_proj", "layers.1.mlp.fc2"))]
    out, inputs = captured(model, {n: f"{n}.weight" for n in modules}, None, lambda: model(pixel_values=pixels))
    save("clip", model, dict(inputs, pixel_values=pixels, features=out.image_embeds))
    open_clip(config, pixels, out.image_embeds, inputs)


def open_clip(config, pixels, features, inputs):
    """The same tower, its tensors under OpenCLIP's names, q, k and v in one."""
    source = {k.removeprefix("vision_model."): v for k, v in load_file(HERE / "clip/model.safetensors").items()}
    out = {
        "visual.class_embedding": source["embeddings.class_embedding"],
        "visual.conv1.weight": source["embeddings.patch_embedding.weight"],
        "visual.positional_embedding": source["embeddings.position_embedding.weight"],
        "visual.proj": source["visual_projection.weight"].T.contiguous(),
    }
    for ours, theirs in [("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")]:
        for end in ["weight", "bias"]:
            out[f"visual.{ours}.{end}"] = source[f"{theirs}.{end}"]
    for i in range(config.num_hidden_layers):
        at, to = f"encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
        for end in ["weight", "bias"]:
            parts = [source[f"{at}.self_attn.{p}_proj.{end}"] for p in "qkv"]
            out[f"{to}.attn.in_proj_{end}"] = torch.cat(parts)
            for ours, theirs in [("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
                                 ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")]:
                out[f"{to}.{ours}.{end}"] = source[f"{at}.{theirs}.{end}"]
    folder = HERE / "open_clip"
    folder.mkdir(exist_ok=True)
    save_file(out, folder / "open_clip_model.safetensors")
    vision = {"image_size": 10, "layers": 2, "width": 16, "patch_size": 4, "head_width": 4}
    config = {"model_cfg": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    renamed = {"visual.transformer.resblocks.1.attn.in_proj_weight.input": "q_proj.weight.input",
               "visual.transformer.resblocks.1.mlp.c_proj.weight.input": "fc2.weight.input"}
    golden = {ours: next(v for k, v in inputs.items() if k.endswith(theirs)) for ours, theirs in renamed.items()}
    golden.update(pixel_values=pixels, features=features)
    save_file({k: v.contiguous() for k, v in golden.items()}, folder.with_suffix(".safetensors"))


def vit():
    config = ViTConfig(**SIZES, image_size=10, patch_size=4)
    model = randomised(ViTModel(config, add_pooling_layer=False))
    pixels = torch.randn(2, 3, 10, 10)
    with torch.no_grad():
        out = model(pixel_values=pixels)
    save("vit", model, dict(pixel_values=pixels, features=out.last_hidden_state[:, 0]))


if __name__ == "__main__":
    clip()
    vit()
    encoder("bert", BertModel(BertConfig(**TEXT, pad_token_id=0), add_pooling_layer=False), 0)
    encoder("bert_decoder", BertModel(BertConfig(**TEXT, pad_token_id=0, is_decoder=True), add_pooling_layer=False), 0)
    encoder("roberta", RobertaModel(RobertaConfig(**TEXT, pad_token_id=1, type_vocab_size=1), add_pooling_layer=False), 1)
    scaling = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
    decoder("llama", LlamaModel(LlamaConfig(**TEXT, num_key_value_heads=2, rope_parameters=scaling)))
    decoder("mistral", MistralModel(MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=4)))
    decoder("qwen2", Qwen2Model(Qwen2Config(**TEXT, num_key_value_heads=2)))
