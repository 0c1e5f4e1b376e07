"""Makes the model goldens in this folder: one tiny random model per architecture, run by Hugging Face transformers.

    pip install torch transformers safetensors && python generate.py [NAME...]

Each folder has `config.json` and `model.safetensors` as transformers writes them; the file of its name beside it has the inputs,
`features` (as the architecture pools them by default), and `<weight>.input`, what enters some linear layers (padding
removed). `open_clip` is the CLIP tower under OpenCLIP's names. Made once with torch 2.15 and transformers 5.23 and 5.24; the files
are what counts.
"""

import json
import pathlib
import sys

import torch
import transformers as T
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


def save(folder, model, tensors, **options):
    folder = HERE / folder
    model.save_pretrained(folder, **options)
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


def encoder(folder, model, pad, layers=("encoder.layer.1.attention.self.query", "encoder.layer.1.output.dense")):
    ids, mask = text_inputs(pad)
    names = {n: f"{n}.weight" for n in layers}
    model = randomised(model)
    out, inputs = captured(model, names, mask, lambda: model(input_ids=ids, attention_mask=mask))
    weights = mask.unsqueeze(-1).float()
    features = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
    save(folder, model, dict(inputs, input_ids=ids, attention_mask=mask, features=features))


def decoder(folder, model, layers=("layers.1.self_attn.q_proj", "layers.1.mlp.down_proj")):
    ids, mask = text_inputs(0)
    names = {n: f"{n}.weight" for n in layers}
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


def mixture(folder, model, experts, layers, apart=True):
    """A decoder whose experts' inputs are told from the routing: `experts` names the module, `layers` a block's weights. The file has
    the experts `apart`, or all of them in one tensor."""
    ids, mask = text_inputs(0)
    model = randomised(model)
    router = dict(model.named_modules())[experts].gate
    seen = {}
    router.register_forward_hook(lambda module, args, out: seen.update(x=args[0].detach(), chosen=out[2]))
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask)
    keep = mask.reshape(-1).bool()
    x, chosen = seen["x"].reshape(-1, seen["x"].shape[-1])[keep], seen["chosen"][keep]
    inputs = {f"{name}.input": x[(chosen == e).any(-1)] for e, name in layers.items()}
    inputs[f"{experts}.gate.weight.input".replace("mlp.gate", ROUTERS[folder])] = x
    features = out.last_hidden_state[torch.arange(3), mask.sum(1) - 1]
    tensors = dict(inputs, input_ids=ids, attention_mask=mask, features=features)
    save(folder, model, tensors, save_original_format=apart)


ROUTERS = {"mixtral": "block_sparse_moe.gate", **dict.fromkeys(["qwen3_moe", "mixtral_in_one", "qwen3_moe_in_one"], "mlp.gate")}


def t5(folder, config):
    model = randomised(T.T5ForConditionalGeneration(config))
    ids, mask = text_inputs(0)
    names = {n: f"{n}.weight" for n in ["encoder.block.1.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wo"]}
    run = lambda: model.encoder(input_ids=ids, attention_mask=mask)
    out, inputs = captured(model, names, mask, run)
    weights = mask.unsqueeze(-1).float()
    features = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
    save(folder, model, dict(inputs, input_ids=ids, attention_mask=mask, features=features))


def tower(folder, model, layers, features, size=(12, 12)):
    model = randomised(model)
    pixels = torch.randn(2, 3, *size)
    out, inputs = captured(model, layers, None, lambda: model(pixel_values=pixels))
    save(folder, model, dict(inputs, pixel_values=pixels, features=features(out)))


SCALING = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=8, beta_fast=2, beta_slow=1)
LONG = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.5], long_factor=[2.0, 3.0],
            original_max_position_embeddings=16)
GROUPED = dict(TEXT, num_key_value_heads=2)
GEMMA = dict(GROUPED, head_dim=6, query_pre_attn_scalar=9, sliding_window=3)
KINDS = ["sliding_attention", "full_attention"]
T5 = dict(d_model=16, d_kv=3, d_ff=24, num_layers=2, num_heads=4, vocab_size=40, relative_attention_num_buckets=8,
          relative_attention_max_distance=7)
MODERN = dict(TEXT, num_hidden_layers=3, pad_token_id=0, global_attn_every_n_layers=2, local_attention=4,
              cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
MIXTRAL = T.MixtralConfig(**GROUPED, num_local_experts=4)
QWEN3_MOE = T.Qwen3MoeConfig(**GROUPED, head_dim=4, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12,
                             decoder_sparse_step=2)

MODELS = {
    "clip": clip,  # and open_clip
    "vit": vit,
    "bert": lambda: encoder("bert", BertModel(BertConfig(**TEXT, pad_token_id=0), add_pooling_layer=False), 0),
    "bert_decoder": lambda: encoder(
        "bert_decoder", BertModel(BertConfig(**TEXT, pad_token_id=0, is_decoder=True), add_pooling_layer=False), 0),
    "roberta": lambda: encoder(
        "roberta", RobertaModel(RobertaConfig(**TEXT, pad_token_id=1, type_vocab_size=1), add_pooling_layer=False), 1),
    "distilbert": lambda: encoder(
        "distilbert",
        T.DistilBertModel(T.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24, vocab_size=40,
                                             max_position_embeddings=32)), 0,
        ("transformer.layer.1.attention.q_lin", "transformer.layer.1.ffn.lin2")),
    "modernbert": lambda: encoder("modernbert", T.ModernBertModel(T.ModernBertConfig(**MODERN)), 0,
                                  ("layers.2.attn.Wqkv", "layers.1.mlp.Wo")),
    "t5": lambda: t5("t5", T.T5Config(**T5)),
    "t5_gated": lambda: t5("t5_gated", T.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "llama": lambda: decoder("llama", LlamaModel(LlamaConfig(**GROUPED, rope_parameters=SCALING))),
    "mistral": lambda: decoder("mistral", MistralModel(MistralConfig(**GROUPED, sliding_window=4))),
    "qwen2": lambda: decoder("qwen2", Qwen2Model(Qwen2Config(**GROUPED))),
    "qwen2_window": lambda: decoder(
        "qwen2_window", Qwen2Model(Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=3, max_window_layers=1))),
    "qwen3": lambda: decoder("qwen3", T.Qwen3Model(T.Qwen3Config(**GROUPED, head_dim=6, rope_parameters=YARN))),
    "gemma": lambda: decoder("gemma", T.GemmaModel(T.GemmaConfig(**GROUPED, head_dim=6))),
    "gemma2": lambda: decoder("gemma2", T.Gemma2Model(T.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, layer_types=KINDS))),
    "gemma3": lambda: decoder("gemma3", T.Gemma3TextModel(T.Gemma3TextConfig(**GEMMA, layer_types=KINDS))),
    "phi3": lambda: decoder("phi3", T.Phi3Model(T.Phi3Config(**GROUPED, pad_token_id=0, rope_parameters=LONG,
                                                             original_max_position_embeddings=16)),
                            ("layers.1.self_attn.qkv_proj", "layers.1.mlp.down_proj")),
    "gpt2": lambda: decoder("gpt2", T.GPT2Model(T.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=40, n_positions=32,
                                                             bos_token_id=1, eos_token_id=2)),
                            ("h.1.attn.c_attn", "h.1.mlp.c_proj")),
    "gpt_neox": lambda: decoder("gpt_neox", T.GPTNeoXModel(T.GPTNeoXConfig(**TEXT, rotary_pct=0.5, bos_token_id=1, eos_token_id=2)),
                                ("layers.1.attention.query_key_value", "layers.1.mlp.dense_4h_to_h")),
    "mixtral": lambda: mixture("mixtral", T.MixtralModel(MIXTRAL), "layers.1.mlp",
                               {2: "layers.1.block_sparse_moe.experts.2.w1.weight"}),
    "mixtral_in_one": lambda: mixture("mixtral_in_one", T.MixtralModel(MIXTRAL), "layers.1.mlp",
                                      {2: "layers.1.mlp.experts.gate_up_proj[2]"}, apart=False),
    "qwen3_moe": lambda: mixture("qwen3_moe", T.Qwen3MoeModel(QWEN3_MOE), "layers.1.mlp",
                                 {3: "layers.1.mlp.experts.3.gate_proj.weight"}),
    "qwen3_moe_in_one": lambda: mixture("qwen3_moe_in_one", T.Qwen3MoeModel(QWEN3_MOE), "layers.1.mlp",
                                        {3: "layers.1.mlp.experts.gate_up_proj[3]"}, apart=False),
    "siglip": lambda: tower(
        "siglip", T.SiglipVisionModel(T.SiglipVisionConfig(**SIZES, image_size=12, patch_size=4)),
        {n: f"{n}.weight" for n in ["encoder.layers.1.self_attn.q_proj", "encoder.layers.1.mlp.fc2"]},
        lambda out: out.pooler_output),
    "dinov2": lambda: tower(
        "dinov2", T.Dinov2Model(T.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2,
                                               image_size=12, patch_size=4)),
        {}, lambda out: out.last_hidden_state[:, 0]),
    # images of another size than the table of positions is for
    "dinov2_sizes": lambda: tower(
        "dinov2_sizes", T.Dinov2Model(T.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2,
                                                     image_size=12, patch_size=4)),
        {}, lambda out: out.last_hidden_state[:, 0], (20, 9)),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        MODELS[name]()
