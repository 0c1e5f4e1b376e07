"""Merges tiny models by mergekit 0.1.5 and by esmerge, with every recipe in `recipes/`, compares every tensor, and loads what
esmerge made in transformers.

    python compare.py ESMERGE FOLDER [PART OF A RECIPE'S NAME]

FOLDER gets the models and both results. The last line says how many merges agree; the exit code is 1 if one does not.
"""

import json, os, pathlib, shutil, statistics, subprocess, sys

import torch, yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models as vocabularies, pre_tokenizers
from transformers import (AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration)

from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

ESMERGE, FOLDER = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
RECIPES = sorted((pathlib.Path(__file__).resolve().parent / "recipes").glob("*.yaml"))
WANTED = sys.argv[3] if len(sys.argv) > 3 else ""


class Names(tuple):
    """Names that can be added to a list: mergekit 0.1.5 keeps those of BERT's tensors in tuples, and adds them to lists."""

    def __radd__(self, other):
        return other + list(self)


def with_names(weight):
    changed = {key: Names(getattr(weight, key)) for key in ("aliases", "tied_names") if getattr(weight, key, None)}
    return weight.model_copy(update=changed) if changed else weight


plan_tensor = MergePlanner.plan_tensor
MergePlanner.plan_tensor = lambda self, weight, weights_in, *rest, **named: plan_tensor(
    self, with_names(weight), [with_names(w) for w in weights_in], *rest, **named)

VOCABULARY = 96
# tokens of experts that have more than the base, in an order of their own
MORE = {"chat": ["<|im_start|>", "<|im_end|>"], "code": ["<|fim|>", "<|im_end|>", "<|file|>"]}


def llama(vocabulary=VOCABULARY):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64))


def bert(vocabulary=VOCABULARY):
    return BertModel(BertConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64))


def t5(vocabulary=VOCABULARY):
    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0))


def tokenizer(more=()):
    words = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(VOCABULARY - 3)]
    tok = Tokenizer(vocabularies.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tok.add_tokens(list(more), special_tokens=True)
    return tok


def family(folder, make, dtype):
    torch.manual_seed(0)
    base = make().to(dtype)
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    for i, expert in enumerate(["a", "b", "c", *(MORE if make is llama else ())]):
        torch.manual_seed(i + 1)
        more = MORE.get(expert, [])
        model = make(VOCABULARY + len(more))
        with torch.no_grad():
            for p, of_base in zip(model.parameters(), base.parameters()):
                p[:len(of_base)] = of_base
                p.add_(0.01 * torch.randn_like(p))
        model.to(dtype).save_pretrained(folder / expert)
        tokenizer(more).save_pretrained(folder / expert)
    for i, name in enumerate(["lora_a", "lora_b"] if make is llama else []):
        torch.manual_seed(10 + i)
        modules = ["q_proj", "v_proj", "down_proj"][:i + 2]
        model = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=4 + i, lora_alpha=8, target_modules=modules))
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.copy_(0.05 * torch.randn_like(p))
        model.save_pretrained(folder / name)


def documents(file, dtype):
    """The recipe's documents, computed in float32 as here: mergekit computes in `dtype`."""
    read = list(yaml.safe_load_all(file.read_text()))
    for i, document in enumerate(read):
        document.update(dtype="float32", out_dtype=dtype if i + 1 == len(read) else "float32")
    return read


def merge_by_mergekit(documents, out):
    options = MergeOptions(quiet=True, lora_merge_cache="merged_adapters", lora_merge_dtype="float32", write_model_card=False)
    for document in documents:
        LoaderCache().loaders.clear()  # it knows models by their paths, which are the same in every family
        name = document.get("name", out)
        rest = {key: value for key, value in document.items() if key != "name"}
        run_merge(MergeConfiguration.model_validate(rest), name, options)


def tensors(folder):
    found = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        found.update(load_file(file))
    return found


def in_order_of(tensors, of, to):
    """mergekit takes the models in an order of chance: the rows of a union are put in the order of esmerge's tokens."""
    ids, places = AutoTokenizer.from_pretrained(of).get_vocab(), AutoTokenizer.from_pretrained(to).get_vocab()
    if ids == places:
        return tensors
    order = torch.arange(max(len(t) for t in tensors.values()))
    for token, id in ids.items():
        order[places[token]] = id
    of_tokens = lambda name: "embed_tokens" in name or "lm_head" in name
    return {name: tensor[order[:len(tensor)]] if of_tokens(name) else tensor for name, tensor in tensors.items()}


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)).item()


def roundings(got, want):
    """By how many units in the last place of bfloat16 an element differs at most, beyond float32's own error: one where two results
    of float32 lie on either side of a tie."""
    got, want = got.double(), want.double()
    unit = 2.0 ** (torch.frexp(want)[1] - 8)
    return (((got - want).abs() - 1e-6 * want.norm() / want.numel() ** 0.5) / unit).max().clamp(min=0).item()


def by_chance(theirs):
    """Other elements survive here than there, and by another seed: the L1 norm of what is added to the base, over the whole model, is that of
    one more draw. In how many standard deviations of esmerge's draws mergekit's lies from their mean, and that in relation to the mean.

    The sum of so many elements' shares, of which none is a large part, is normal, and its deviation is estimated from DRAWS of them: the quotient
    has Student's distribution with DRAWS - 1 degrees of freedom, widened by sqrt(1 + 1/DRAWS)."""
    base = tensors("base")
    norm = lambda made: sum((made[k].double() - base[k].double()).abs().sum().item() for k in base)
    norms = []
    for seed in range(DRAWS):
        shutil.rmtree("drawn", ignore_errors=True)
        subprocess.run([ESMERGE, "merge", "recipe.yaml", "drawn", "-q", "--device", "cpu", "--seed", str(seed)], check=True, capture_output=True)
        norms.append(norm(in_order_of(tensors("drawn"), "drawn", "ours")))
    shutil.rmtree("drawn")
    mean, distance = statistics.mean(norms), norm(theirs) - statistics.mean(norms)
    deviation = statistics.stdev(norms) * (1 + 1 / DRAWS) ** 0.5
    return abs(distance) / max(deviation, 1e-12 * mean), abs(distance) / mean


def compare(file, dtype):
    for left in ("theirs", "ours", "merged_adapters", *(d["name"] for d in documents(file, dtype) if "name" in d)):
        shutil.rmtree(left, ignore_errors=True)
    recipe = documents(file, dtype)
    merge_by_mergekit(recipe, "theirs")
    for document in recipe:
        if "name" in document:
            shutil.rmtree(document["name"])  # made anew
    pathlib.Path("recipe.yaml").write_text(yaml.safe_dump_all(recipe, sort_keys=False))
    run = subprocess.run([ESMERGE, "merge", "recipe.yaml", "ours", "-q", "--device", "cpu"], capture_output=True, text=True)
    if run.returncode:
        return f"esmerge: {run.stderr.strip()}"
    theirs, ours = tensors("theirs"), tensors("ours")
    if theirs.keys() != ours.keys():
        return f"tensors differ: {sorted(theirs.keys() ^ ours.keys())[:4]}"
    for key, want in theirs.items():
        if ours[key].shape != want.shape:
            return f"{key}: shape {tuple(ours[key].shape)}, not {tuple(want.shape)}"
    if why := does_not_load(theirs.keys()):
        return why
    theirs = in_order_of(theirs, "theirs", "ours")
    method = recipe[-1]["merge_method"]
    if method in BY_CHANCE and "full-density" not in file.name:
        deviations, error = by_chance(theirs)
        if deviations > MOST_DEVIATIONS:
            return f"its L1 norm lies {deviations:.1f} standard deviations from those of {DRAWS} draws, a share of {error:.1e}"
        return None, error
    if dtype == "bfloat16" and method in TIED:
        return None, 0.0
    if method in NOISY:
        differ = sum(((ours[k].double() - theirs[k].double()).abs() > 1e-5).sum().item() for k in theirs)
        share = differ / sum(tensor.numel() for tensor in theirs.values())
        return f"{share:.1e} of the elements differ" if share > 5e-3 else (None, share)
    error = relative if dtype == "float32" else roundings
    worst, where = max((error(ours[key], want), key) for key, want in theirs.items())
    bound = 1e-5 if dtype == "float32" else 1
    return f"{worst:.1e} at {where}" if worst > bound else (None, worst)


def does_not_load(names):
    """Why transformers does not take the output for a whole model, or what its tokenizer does not share with mergekit's."""
    causal = any(name.startswith("lm_head") or name.startswith("model.") for name in names)
    model, said = (AutoModelForCausalLM if causal else AutoModel).from_pretrained("ours", output_loading_info=True)
    wrong = {key: list(value) for key, value in said.items() if value}
    if wrong:
        return f"transformers: {wrong}"
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in ("ours", "theirs"))
    if ours.get_vocab().keys() != theirs.get_vocab().keys():
        return f"vocabularies differ: {sorted(ours.get_vocab().keys() ^ theirs.get_vocab().keys())[:4]}"
    if theirs.chat_template:
        talk = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4"}]
        said = [tok.apply_chat_template(talk, tokenize=False, add_generation_prompt=True).strip() for tok in (ours, theirs)]
        if said[0] != said[1]:
            return f"chats differ: {said}"
    rows = model.get_input_embeddings().weight.shape[0]
    wanted = json.loads(pathlib.Path("theirs/config.json").read_text())["vocab_size"]
    if not rows == model.config.vocab_size == wanted:
        return f"{rows} embeddings, vocab_size {model.config.vocab_size}, not {wanted}"
    tokens = torch.arange(min(rows, 48))[None]
    output = model(tokens, **({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}))[0]
    return None if output.isfinite().all() else "the output's outputs are not finite"


def fits(file, kind):
    """Whether a recipe is one for a kind of model: ranges of layers, adapters and tokens are Llama's, modules T5's."""
    if (kind == "t5") != ("encoder:" in file.read_text()):
        return False
    return kind in ("llama", "t5") or not any(word in file.read_text() for word in ("slices:", "lora_", "chat"))


def main():
    failed = total = 0
    for kind, make in [("llama", llama), ("bert", bert), ("t5", t5)]:
        for dtype, torch_dtype in [("float32", torch.float32), ("bfloat16", torch.bfloat16)]:
            folder = FOLDER / f"{kind}-{dtype}"
            folder.mkdir(parents=True, exist_ok=True)
            family(folder, make, torch_dtype)
            os.chdir(folder)
            for file in RECIPES:
                if WANTED not in file.stem or not fits(file, kind):
                    continue
                total += 1
                try:
                    result = compare(file, dtype)
                except Exception as error:  # mergekit's own, or transformers'
                    result = f"{type(error).__name__}: {error}"
                ok = isinstance(result, tuple)
                failed += not ok
                print(f"{folder.name:15} {file.stem:28} {'%.1e' % result[1] if ok else 'DIFFERS: ' + result}", flush=True)
    print(f"{total - failed} of {total} agree")
    return failed > 0


# files of 16 bits have many differences of one magnitude, of which a trim keeps some: which is arbitrary in mergekit
TIED = {"ties", "breadcrumbs", "breadcrumbs_ties", "sce"}

# the importance of elements near the threshold is rounding there: divergences are sums of numbers of both signs in float32
NOISY = {"arcee_fusion"}

# of esmerge's, and how far mergekit's may lie from them: a value of Student's distribution with 15 degrees of freedom is beyond 6 once in 40,000
# comparisons
DRAWS, MOST_DEVIATIONS = 16, 6.0

# which differences survive is drawn
BY_CHANCE = {"dare_ties", "dare_linear", "della", "della_linear"}

if __name__ == "__main__":
    sys.exit(main())
