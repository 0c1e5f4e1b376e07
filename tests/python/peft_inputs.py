"""Writes bases, adapters of many kinds as PEFT saves them, and what `merge_and_unload` makes of the two.

    python peft_inputs.py FOLDER [CASE...]

FOLDER gets a folder a case with `base`, `adapter` and `merged`.
"""

import pathlib
import sys
import warnings

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

warnings.filterwarnings("ignore")

LLAMA = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
)


def llama(cls=transformers.LlamaForCausalLM, **more):
    return cls(transformers.LlamaConfig(**LLAMA, **more))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8))


def vit():
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
        )
    )


def bert():
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3
        )
    )


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2))


def qwen3_moe():
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, head_dim=8)
    )


def gpt_oss():
    config = dict(LLAMA, num_local_experts=4, head_dim=8)
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**config))


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

CASES = {
    "plain": (llama, dict(r=4, lora_alpha=12, target_modules=ATTENTION + ["gate_proj", "up_proj", "down_proj"])),
    "rslora": (llama, dict(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear")),
    "patterns": (
        llama,
        dict(
            r=4,
            lora_alpha=6,
            target_modules=ATTENTION + ["down_proj"],
            rank_pattern={"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3, "v_proj": 5},
            alpha_pattern={"model.layers.0.self_attn.q_proj": 9, "k_proj": 1, "proj": 100},
        ),
    ),
    "patterns_of_rslora": (
        llama,
        dict(r=4, lora_alpha=6, use_rslora=True, target_modules=ATTENTION, rank_pattern={"q_proj": 9}, alpha_pattern={"v_proj": 2}),
    ),
    "embeddings": (llama, dict(r=4, lora_alpha=6, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "saved": (llama, dict(r=4, lora_alpha=6, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])),
    "conv1d": (gpt2, dict(r=4, lora_alpha=6, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "conv1d_embeddings": (gpt2, dict(r=4, lora_alpha=6, target_modules=["c_attn", "wte"], fan_in_fan_out=True)),
    "renamed": (vit, dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "fc1", "fc2"])),
    "convolution": (vit, dict(r=4, lora_alpha=6, target_modules=["q_proj", "projection"])),
    "classifier": (bert, dict(r=4, lora_alpha=6, task_type="SEQ_CLS", target_modules=["query", "value", "dense"])),
    "mixture": (mixtral, dict(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=EXPERTS)),
    "mixture_of_small_experts": (qwen3_moe, dict(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=EXPERTS)),
    "mixture_in_one": (mixtral, dict(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=EXPERTS)),
    "one_parameter": (qwen3_moe, dict(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=EXPERTS[1:])),
    "transposed_mixture": (gpt_oss, dict(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=EXPERTS)),
}


# saved with the matrices of all experts in one tensor
IN_ONE = ["mixture_in_one"]


def main(folder, *names):
    folder = pathlib.Path(folder)
    for seed, (name, (model, settings)) in enumerate(CASES.items()):
        if names and name not in names:
            continue
        apart = dict(save_original_format=name not in IN_ONE)
        torch.manual_seed(seed)
        base = model()
        base.save_pretrained(folder / name / "base", **apart)
        base = type(base).from_pretrained(folder / name / "base", dtype=torch.float32)
        adapted = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        adapted.save_pretrained(folder / name / "adapter")
        base = type(base).from_pretrained(folder / name / "base", dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, folder / name / "adapter").merge_and_unload()
        merged.save_pretrained(folder / name / "merged", **apart)
        print(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
