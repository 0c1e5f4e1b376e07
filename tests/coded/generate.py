"""Makes the coded weights in this folder, and the floats that the formats' own libraries make of them.

    pip install torch safetensors gguf numpy transformers && python generate.py

`llama.gguf` has a tensor of every type that is read, under llama.cpp's names, rows of queries and keys in its order; `gemma.gguf` a norm.
`fp8.safetensors` has 8-bit floats with every arrangement of scales. `expected.safetensors` holds `FILE/NAME` in float32: `gguf.dequantize`'s
values, in Hugging Face's order of rows, and torch's. `mxfp4.safetensors` has experts of gpt-oss, `mxfp4-expected.safetensors` what
transformers makes of them. Made once with gguf 0.19, torch 2.15 and transformers 5.24; the files are what counts.
"""

import pathlib

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = pathlib.Path(__file__).parent
HEADS, KEY_HEADS = 4, 2
rng = np.random.default_rng(1)


def permuted(w, heads):
    """What llama.cpp's conversion does to the rows of queries and keys."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermuted(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def coded(kind, shape):
    """Random codes of a type (finite scales), as rows of bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    codes = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    scale = (rng.standard_normal(codes.shape[:2]) * 0.01).astype(np.float16)
    places = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}[kind.name]
    for at in places:
        codes[:, :, at:at + 2] = scale[..., None].view(np.uint8).reshape(*codes.shape[:2], 2)
    return codes.reshape(shape[0], -1)


def llama(expected):
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(HERE / "llama.gguf", "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_block_count(1)
    writer.add_token_list(["a", "bc", "def"])
    tensors = {
        "blk.0.attn_q": ("self_attn.q_proj", kinds.Q4_K, (16, 256), HEADS),
        "blk.0.attn_k": ("self_attn.k_proj", kinds.Q8_0, (8, 256), KEY_HEADS),
        "blk.0.attn_v": ("self_attn.v_proj", kinds.Q6_K, (8, 256), None),
        "blk.0.attn_output": ("self_attn.o_proj", kinds.Q4_0, (8, 64), None),
        "blk.0.ffn_gate": ("mlp.gate_proj", kinds.F16, (5, 7), None),
        "blk.0.ffn_up": ("mlp.up_proj", kinds.BF16, (5, 7), None),
        "blk.0.ffn_norm": ("post_attention_layernorm", kinds.F32, (7,), None),
    }
    for name, (theirs, kind, shape, heads) in tensors.items():
        if kind == kinds.F16:
            data = rng.standard_normal(shape).astype(np.float16)
            values = data.astype(np.float32)
        elif kind == kinds.F32:
            data = values = rng.standard_normal(shape).astype(np.float32)
        elif kind == kinds.BF16:
            values = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
            data = gguf.quantize(values, kind)
        else:
            data = coded(kind, shape)
            values = gguf.dequantize(data, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        values = unpermuted(values, heads) if heads else values
        expected[f"llama.gguf/model.layers.0.{theirs}.weight"] = torch.from_numpy(values.astype(np.float32).copy())
    bias = rng.standard_normal(16).astype(np.float32)
    writer.add_tensor("blk.0.attn_q.bias", permuted(bias, HEADS))
    expected["llama.gguf/model.layers.0.self_attn.q_proj.bias"] = torch.from_numpy(bias)
    writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
    close(writer)


def gemma(expected):
    writer = gguf.GGUFWriter(HERE / "gemma.gguf", "gemma2")
    norm = rng.standard_normal(6).astype(np.float32)
    for name, theirs in [("post_attention_norm", "post_attention_layernorm"), ("ffn_norm", "pre_feedforward_layernorm")]:
        writer.add_tensor(f"blk.0.{name}.weight", norm)
        expected[f"gemma.gguf/model.layers.0.{theirs}.weight"] = torch.from_numpy(norm - np.float32(1))
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fp8(expected):
    """Shapes with blocks of 128 at their edges."""
    torch.manual_seed(1)
    arrangements = {
        "tensor": ("weight_scale", lambda rows, cols: torch.rand(())),
        "one": ("weight_scale", lambda rows, cols: torch.rand(1)),
        "channel": ("weight_scale", lambda rows, cols: torch.rand(rows, 1)),
        "rows": ("weight_scale", lambda rows, cols: torch.rand(rows).bfloat16()),
        "blocks": ("weight_scale_inv", lambda rows, cols: torch.rand(-(-rows // 128), -(-cols // 128))),
        "none": (None, None),
    }
    tensors = {}
    for dtype in [torch.float8_e4m3fn, torch.float8_e5m2]:
        for name, (scale, make) in arrangements.items():
            rows, cols = 130, 140
            at = f"layers.0.{name}_{str(dtype).split('_')[1]}"
            codes = (torch.randn(rows, cols) * 2.0 ** torch.randint(-12, 6, (rows, cols))).to(dtype)
            tensors[f"{at}.weight"] = codes
            values = codes.float()
            if scale:
                factors = make(rows, cols)
                tensors[f"{at}.{scale}"] = factors
                factors = factors.float()
                if factors.dim() == 1 and len(factors) == rows:
                    factors = factors[:, None]
                if name == "blocks":
                    factors = factors.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
                values = values * factors
            expected[f"fp8.safetensors/{at}.weight"] = values
    tensors["layers.0.norm.weight"] = torch.ones(4)
    tensors["layers.0.tensor_e4m3fn.input_scale"] = torch.ones(())
    save_file(tensors, HERE / "fp8.safetensors")


def mxfp4():
    """Experts in gpt-oss's layout, under every exponent that gives finite values, and what transformers makes of them."""
    tensors, expected = {}, {}
    for name, (experts, outputs, groups) in {"gate_up_proj": (3, 10, 2), "down_proj": (3, 7, 1), "wide_proj": (2, 300, 3)}.items():
        at = f"model.layers.0.mlp.experts.{name}"
        blocks = torch.from_numpy(rng.integers(0, 256, (experts, outputs, groups, 16), dtype=np.uint8))
        scales = torch.from_numpy(rng.integers(0, 252, (experts, outputs, groups), dtype=np.uint8))
        tensors |= {f"{at}_blocks": blocks, f"{at}_scales": scales, f"{at}_bias": torch.ones(experts, outputs)}
        expected[f"mxfp4.safetensors/{at}"] = convert_moe_packed_tensors(blocks, scales).float()
    save_file(tensors, HERE / "mxfp4.safetensors")
    save_file(expected, HERE / "mxfp4-expected.safetensors")


if __name__ == "__main__":
    expected = {}
    llama(expected)
    gemma(expected)
    fp8(expected)
    save_file(expected, HERE / "expected.safetensors")
    mxfp4()
