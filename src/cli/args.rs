use super::device::{Device, DeviceChoice};
use super::download::Download;
use super::memory;
use super::shard::Shard;
use crate::backend::gpu::{Autotune, Config, cache_folder};
use crate::bench::{Kernel, Size};
use crate::data::Split;
use crate::linalg::Accuracy;
use crate::matrix::Dtype;
use crate::method::head_refit::{LAM, Mode};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  esmerge merge recipe.yaml merged/            merge as the recipe says
  esmerge merge recipe.yaml --dry-run          what would be done, and its cost
  esmerge merge recipe.yaml merged/ --keep-delta d.safetensors
  esmerge merge recipe.yaml merged/ --shard 1/2
                                               half of it, for `esmerge join`
  esmerge rescale d.safetensors --base models/base --alpha 0.6 other/
                                               another alpha, in seconds
  esmerge apply models/llama adapters/math -o llama-math/
                                               a model with an adapter added
  esmerge extract models/math --base models/llama --rank 16 -o math/
                                               an adapter of a fine-tuned model
  esmerge capture models/cars --data photos/ -o cars.safetensors
                                               inputs of layers, for ESM
  esmerge eval merged/ --task cars.safetensors accuracy on a task
  esmerge heads merged/ --experts recipe.yaml --data tasks/* -o merged/heads
                                               heads refitted, without labels
  esmerge route merged/ --data photos/         which expert each sample takes
  esmerge methods ties                         what there is to merge by
  esmerge devices                              what there is to compute on
  esmerge bench --kernel gemm                  how fast that is

Exit code: 0 success; 2 an error in the command line or the recipe; 1 any other
error; 101 a defect, to be reported; 128 and its number when a signal stopped
the run.";

const BENCH: &str = "\
Two peaks are measured first, of multiply-adds and of a copy; the kernels are
given as fractions of them.

Kernels, and the sizes they take:
  gemm, gemm-nt, gemm-tn   MxNxK                 products, of factors as they
                                                 lie or transposed (t); K is
                                                 summed over
  syrk, syrk-t             NxK                   X X^T of a matrix as it lies or
                                                 stored transposed
  unpack, pack             ROWSxCOLUMNS          float16, bfloat16 to and from
                                                 float32
  axpby, copy_block, scale_rows, scale_columns, reduce_rows, reduce_columns,
  random_normal, layer_norm
                           ROWSxCOLUMNS          element by element, and norms
  inverse_cholesky, symmetric_eigen
                           NxN
  attention                SAMPLES:TOKENSxWIDTH  with heads of 64
  orthonormalize_rows      ROWSxCOLUMNS          CholeskyQR of rows
  leading_eigenpairs       KxDxN                 the K leading eigenvectors of
                                                 X^T X, X of N x D
  polar                    ROWSxCOLUMNS          the polar factor

BATCH: before a size is for several matrices at once, such as 8:96x96. The last
four are many kernels with a few read-backs, and timed by the host's clock; all
others by the device's, where it has one.

Examples:
  esmerge bench --device gpu:llvmpipe
  esmerge bench --kernel gemm,syrk --shape 1024x1024x1024,1024x1024
  esmerge bench --kernel unpack --dtype bfloat16
  esmerge bench --json now.json --compare before.json

Exit code: 0 success; 1 a kernel has become slower by more than --tolerance, or
any other error; 2 an error in the command line.";

const RECIPE: &str = "\
A recipe is a YAML file; its paths are relative to it:

  merge_method: esm        # or another of `esmerge methods`
  base_model: models/base
  models:
    - model: models/cars   # a folder or .safetensors file, ORG/NAME of the
                           # Hugging Face hub, {delta: FILE}, or an adapter:
                           # its folder, or MODEL+ADAPTER
      calibration: calib/cars.safetensors
    - model: models/mnist
      calibration: calib/mnist.safetensors
  parameters:
    alpha: 0.8             # strength of the merge
  out_dtype: bfloat16      # the base's if left out

Examples:
  esmerge merge recipe.yaml merged/
  esmerge merge recipe.yaml merged/ --device gpu --alpha 0.6
  esmerge merge recipe.yaml merged/ --out-shard-size 2GB --json > report.json
  esmerge merge recipe.yaml --dry-run

The table at the end:
  energy kept  how much of what each expert changes in the outputs of the layers
               (for tsv_m in their weights) the directions kept of it hold
  task scale   experts are multiplied by it: the norm of an expert's delta over
               the experts' mean, squared
  beta         layers are multiplied by it: the norm of a merged delta over the
               mean of its kind of layer, squared";

/// Merge fine-tuned models into one by Essential Subspace Merging, on any GPU or on the CPU.
#[derive(Debug, Parser)]
#[command(name = "esmerge", version = env!("ESMERGE_VERSION"), after_help = EXAMPLES, max_term_width = 110)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Merge models as a recipe says
    Merge(Merge),
    /// Put together what several runs of `merge --shard` have done
    Join(Join),
    /// Make the model again with another alpha, from the deltas that `merge --keep-delta` wrote
    Rescale(Rescale),
    /// Add LoRA adapters to a model
    Apply(Apply),
    /// Make a LoRA adapter of what a fine-tuned model differs from its base by
    Extract(Extract),
    /// Run an expert on a few samples and write the inputs of its layers, which ESM needs
    Capture(Capture),
    /// Measure a model's accuracy on tasks
    Eval(Eval),
    /// Refit experts' heads to a merged model without labels, or keep them beside it
    Heads(Heads),
    /// Write a merged encoder with one of its heads as an ordinary model for classification
    ExportHead(ExportHead),
    /// Say which expert of an ESM++ model each sample takes, layer by layer and by vote
    Route(Route),
    /// Show what experts are like before a merge, or what it made of their layers, in numbers and pictures
    Inspect(Inspect),
    /// List the devices there are to compute on
    Devices(Devices),
    /// Measure the kernels against what the device can do
    Bench(Bench),
    /// Write a commented recipe for the models in some folders
    Init(Init),
    /// List the merging methods, or explain one
    Methods(Methods),
    /// Print a script that completes commands and flags in a shell
    Completions(Completions),
    /// Print the manual page, for `man -l -`
    #[command(hide = true)]
    Man,
}

const INSPECT: &str = "\
Examples:
  esmerge inspect recipe.yaml                  experts before they are merged: how much a few directions
                                               hold of what they change, and how far they share them
  esmerge inspect recipe.yaml --html experts.html --device cpu
  esmerge inspect merged --html merged.html    a page with pictures of a merge
  esmerge eval merged --task tasks/*.safetensors --json > eval.json
  esmerge inspect merged --eval eval.json --html merged.html
                                               with accuracy, too
  esmerge inspect merged --eval eval.json --card
                                               the same into the model's card, README.md";

#[derive(Debug, Args)]
#[command(after_help = INSPECT)]
pub(super) struct Inspect {
    /// A recipe, whose experts are looked at; or the folder of a merged model, or its esmerge-report.json
    pub of: PathBuf,
    #[command(flatten)]
    pub run: DeviceFlags,
    /// What `esmerge eval --json` printed of the merged model
    #[arg(long, value_name = "FILE")]
    pub eval: Option<PathBuf>,
    /// Put accuracies into the model's card, with a picture of them (README.md and accuracy.svg in its folder)
    #[arg(long, requires = "eval")]
    pub card: bool,
    /// Write a page that needs nothing else to be read or printed
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print JSON: of experts everything, of a merged model the numbers of the pictures
    #[arg(long)]
    pub json: bool,
}

const INIT: &str = "\
Examples:
  esmerge init models/ > recipe.yaml           of all models in a folder
  esmerge init models/base models/cars         of these";

#[derive(Debug, Args)]
#[command(after_help = INIT)]
pub(super) struct Init {
    /// Models, or folders of models
    #[arg(required = true)]
    pub folders: Vec<PathBuf>,
}

const METHODS: &str = "\
Examples:
  esmerge methods                              all, with a line each
  esmerge methods ties                         one, with its parameters";

#[derive(Debug, Args)]
#[command(after_help = METHODS)]
pub(super) struct Methods {
    /// The method to explain
    pub name: Option<String>,
}

const COMPLETIONS: &str = "\
Examples:
  esmerge completions bash > ~/.local/share/bash-completion/completions/esmerge
  esmerge completions zsh > ~/.zfunc/_esmerge
  esmerge completions fish > ~/.config/fish/completions/esmerge.fish
  esmerge man | man -l -                       the manual page";

#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS)]
pub(super) struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = RECIPE)]
pub(super) struct Merge {
    /// The recipe, a YAML file
    pub recipe: PathBuf,
    /// The folder to create; it appears when it is complete
    #[arg(required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunFlags,
    /// exact: parity with float64; balanced (default): its error is far below the effect of other calibration samples;
    /// fast: less [default: the recipe's]
    #[arg(long, value_name = "LEVEL")]
    pub accuracy: Option<Accuracy>,
    /// Strength of the merge, instead of the recipe's
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub alpha: Option<f64>,
    /// Seed of random numbers, instead of the recipe's
    #[arg(long)]
    pub seed: Option<u64>,
    /// Merge experts whose config.json differs from the base's in this key, though their weights mean something else by it
    #[arg(long, value_name = "KEY")]
    pub allow_mismatch: Vec<String>,
    /// Check everything and show what would be done to every tensor, without reading weights
    #[arg(long)]
    pub dry_run: bool,
    /// Keep the merged deltas in this file, for `esmerge rescale`
    #[arg(long, value_name = "FILE")]
    pub keep_delta: Option<PathBuf>,
    /// Go on with the work of an earlier run, and fail if it left none; without it, such work is used where there is some
    #[arg(long, conflicts_with = "fresh")]
    pub resume: bool,
    /// Begin again, whatever an earlier run has left
    #[arg(long)]
    pub fresh: bool,
    /// Hash all of every input, so that one that was written again is known by its contents (else by size, time and beginning)
    #[arg(long)]
    pub verify: bool,
    /// Work that a kill may cost, in seconds: so often is what was done made to last
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = duration)]
    pub journal_every: Duration,
    /// Keep nothing that a later run could go on with: less disk, and a kill loses everything
    #[arg(long, conflicts_with_all = ["resume", "verify", "shard"])]
    pub no_journal: bool,
    /// What goes on with the work where the GPU cannot, once it has been tried again: cpu (then the report says so), or nothing
    #[arg(long, value_name = "DEVICE")]
    pub fallback: Option<Fallback>,
    /// Do the K-th of N shares of the work, on this machine or another with the same folders, for `esmerge join`; auto takes both
    /// from SLURM, Kubernetes, Open MPI or Ray
    #[arg(long, value_name = "K/N", conflicts_with_all = ["dry_run", "fresh"])]
    pub shard: Option<Shard>,
    #[command(flatten)]
    pub foreign: ForeignFlags,
}

const JOIN: &str = "\
What the shares have done lies in OUT.esmerge beside the output, with the recipe
and its flags. Joining compares the norms of all layers, finds alpha if the
recipe searches for it, and writes the model.

Examples:
  esmerge merge recipe.yaml merged/ --shard 1/2
  esmerge merge recipe.yaml merged/ --shard 2/2
  esmerge join merged/
  esmerge join merged/ --shard 1/4             writes a quarter of the files";

#[derive(Debug, Args)]
#[command(after_help = JOIN)]
pub(super) struct Join {
    /// The output of the merge that was shared out
    pub out: PathBuf,
    #[command(flatten)]
    pub run: RunFlags,
    /// Keep the merged deltas in this file, if the shares were run with --keep-delta
    #[arg(long, value_name = "FILE")]
    pub keep_delta: Option<PathBuf>,
    /// Hash all of every input, if the shares did
    #[arg(long)]
    pub verify: bool,
    /// Work that a kill may cost, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = duration)]
    pub journal_every: Duration,
    /// What goes on with the work where the GPU cannot, once it has been tried again: cpu (then the report says so), or nothing
    #[arg(long, value_name = "DEVICE")]
    pub fallback: Option<Fallback>,
    /// Write the K-th of N shares of the output's files, and leave the rest to others and to a last `esmerge join` without it
    #[arg(long, value_name = "K/N")]
    pub shard: Option<Shard>,
}

/// Flags of mergekit's that are taken so that its command lines work, and do nothing here.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ForeignFlags {
    #[arg(long, hide = true)]
    cuda: bool,
    #[arg(long, hide = true)]
    lazy_unpickle: bool,
    #[arg(long, hide = true)]
    low_cpu_memory: bool,
    #[arg(long, hide = true)]
    copy_tokenizer: bool,
    #[arg(long, hide = true)]
    allow_crimes: bool,
    #[arg(long, hide = true)]
    trust_remote_code: bool,
}

impl ForeignFlags {
    /// What is said of those that are given.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let notes = [
            (self.cuda, "--cuda: the best GPU there is is taken anyway; --device chooses another"),
            (self.lazy_unpickle, "--lazy-unpickle: weights are always streamed, and pickles are not read"),
            (
                self.low_cpu_memory,
                "--low-cpu-memory: one layer is in memory at a time; --max-memory limits what is beside it",
            ),
            (self.copy_tokenizer, "--copy-tokenizer: the base's tokenizer is always copied"),
            (self.allow_crimes, "--allow-crimes: models of other architectures are refused all the same"),
            (self.trust_remote_code, "--trust-remote-code: no code of a model is run"),
        ];
        notes.into_iter().filter(|(given, _)| *given).map(|(_, note)| note.to_owned())
    }
}

#[derive(Debug, Args)]
pub(super) struct Rescale {
    /// The file that `merge --keep-delta` wrote
    pub delta: PathBuf,
    /// The base model of that merge
    #[arg(long)]
    pub base: String,
    /// The new strength of the merge
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub alpha: f64,
    /// The folder to create; it appears when it is complete
    pub out: PathBuf,
    #[command(flatten)]
    pub run: RunFlags,
}

const APPLY: &str = "\
Adapters are folders with adapter_config.json and adapter_model.safetensors.
What they add is summed; `esmerge merge` merges them by better methods.

Examples:
  esmerge apply models/llama adapters/math -o llama-math/
  esmerge apply models/llama adapters/math adapters/sql --scale 0.5 -o both/
  esmerge apply models/llama adapters/math -o llama-math/ --out-dtype bfloat16";

#[derive(Debug, Args)]
#[command(after_help = APPLY)]
pub(super) struct Apply {
    /// The model the adapters were trained on
    pub base: PathBuf,
    /// The adapters
    #[arg(required = true, value_name = "ADAPTER")]
    pub adapters: Vec<PathBuf>,
    /// The folder to create; it appears when it is complete
    #[arg(short, long, required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// What is added is multiplied by it
    #[arg(long, default_value = "1", allow_negative_numbers = true, value_parser = finite)]
    pub scale: f64,
    /// float32, float16 or bfloat16 [default: the base's, tensor by tensor]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub out_dtype: Option<Dtype>,
    /// Accept adapters that say they were trained on another model (base_model_name_or_path)
    #[arg(long, value_name = "KEY")]
    pub allow_mismatch: Vec<String>,
    /// Check everything and show what would be done to every tensor, without reading weights
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub run: RunFlags,
}

const EXTRACT: &str = "\
Every linear weight of a block gets factors of the rank, the best there are for
the difference itself, or with a calibration for the outputs of the layers on
those inputs. What lies elsewhere (norms, embeddings, heads) is left out, and
what that loses is told.

Examples:
  esmerge extract models/math --base models/llama --rank 16 -o adapters/math/
  esmerge extract models/math --base models/llama --rank 16 \\
    --calibration math.safetensors -o adapters/math/
  esmerge extract models/llama+delta:math.delta.safetensors \\
    --base models/llama --rank 8 --layers '*.self_attn.*.weight' -o math/

The table at the end:
  energy kept  how much of what the model changes in the outputs of these layers
               (without calibration in their weights) the factors hold";

#[derive(Debug, Args)]
#[command(after_help = EXTRACT)]
pub(super) struct Extract {
    /// The fine-tuned model: a folder or file, BASE+delta:FILE, or MODEL+ADAPTER
    pub model: String,
    /// The model it was fine-tuned from
    #[arg(long)]
    pub base: PathBuf,
    /// Directions of each weight
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub rank: u32,
    /// The folder of the adapter to create; it appears when it is complete
    #[arg(short, long)]
    pub out: PathBuf,
    /// Inputs of the model's layers, as `esmerge capture` writes them
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Patterns of the names of the weights, `*` for any characters [default: every linear weight of a block]
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub layers: Vec<String>,
    /// exact: an eigendecomposition in float64; balanced (default): randomized subspace iteration; fast: fewer iterations
    #[arg(long, value_name = "LEVEL", default_value = "balanced")]
    pub accuracy: Accuracy,
    /// Seed of the random starts
    #[arg(long, default_value = "0")]
    pub seed: u64,
    /// Accept a model whose config.json differs from the base's in this key
    #[arg(long, value_name = "KEY")]
    pub allow_mismatch: Vec<String>,
    #[command(flatten)]
    pub run: RunFlags,
}

const CAPTURE: &str = "\
Samples may be
  a folder of images          resized and normalised as preprocessor_config.json
                              says
  a text file, or JSON lines  one sample a line (JSON: under `text`), by the
                              model's tokenizer.json
  a safetensors file          `input_ids` and `attention_mask`, or
                              `pixel_values`, or a task file's `proxy.*`

Examples:
  esmerge capture models/cars --data photos/cars -o calib/cars.safetensors
  esmerge capture models/base+delta:sst2.delta.safetensors \\
    --data reviews.txt -o sst2.safetensors
  esmerge capture models/base+adapters/sst2 --data reviews.txt -o sst2.calib
  esmerge capture models/cars --synthetic -o calib/cars.safetensors";

#[derive(Debug, Args)]
#[command(after_help = CAPTURE)]
pub(super) struct Capture {
    /// The expert: a folder, a file, or BASE+delta:FILE
    pub model: String,
    /// The samples
    #[arg(long, value_name = "PATH", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub data: Option<PathBuf>,
    /// Noise images, or random tokens, in place of samples
    #[arg(long)]
    pub synthetic: bool,
    /// The calibration file to write, its folders made; an earlier one is replaced
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace the file even if it is no calibration file
    #[arg(long)]
    pub force: bool,
    /// How many samples
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Chooses the samples of a folder or text file (of a safetensors file the first are taken), or makes synthetic ones
    #[arg(long, default_value = "0")]
    pub seed: u64,
    /// Cut texts to so many tokens
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: Option<u32>,
    /// What raw inputs may take, in bytes or with a unit; past it layers are given as Gram matrices
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size)]
    pub max_size: u64,
    /// Write raw inputs in float16: half the size, but it moves the merged deltas by 1e-4 and more
    #[arg(long)]
    pub f16: bool,
    #[command(flatten)]
    pub run: DeviceFlags,
}

const EVAL: &str = "\
A task file is a safetensors file: inputs and labels by splits
(`test.input_ids`, `test.attention_mask`, or `test.pixels`, or
`test.pixel_values`; `test.labels`), and `class_embeddings` or `head.weight` and
`head.bias`. A head that the model keeps under the task's name (heads/NAME) is
taken before the file's; without either, that of a model for classification.

The table, in percent:
  accuracy    share of right answers, and its 95% interval
  difference  with --compare: the gain over the earlier report, and half of its
              95% interval
  expert      with --experts: the accuracy of the task's own expert
  normalised  accuracy over the expert's
  CKA         how alike the features are to the expert's, or to those of
              --against: 1 is the same but for a rotation

Examples:
  esmerge eval merged/ --task tasks/*.safetensors
  esmerge eval merged/ --task tasks/*.safetensors --experts recipe.yaml
                              beside each task's own expert
  esmerge eval merged/ --task tasks/*.safetensors --routing prototype
                              with the experts of ESM++
  esmerge eval base --task *.safetensors --json > base.json
  esmerge eval merged/ --task *.safetensors --compare base.json
                              which is better, and how surely
  esmerge eval base+delta:merged.delta.safetensors --alpha 0.8 \\
    --task sst2.safetensors --split 'test[20%:]'";

#[derive(Debug, Args)]
#[command(after_help = EVAL)]
pub(super) struct Eval {
    /// The model: a folder, a file, or BASE+delta:FILE
    pub model: String,
    /// Task files
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub task: Vec<PathBuf>,
    /// The recipe that names the experts: each task is also run with the expert of its name
    #[arg(long, value_name = "RECIPE")]
    pub experts: Option<PathBuf>,
    /// Another model to compare features with, on every task
    #[arg(long, value_name = "MODEL", conflicts_with = "experts")]
    pub against: Option<String>,
    /// A folder of heads, as `esmerge heads` writes it, in place of those in the model's own folder
    #[arg(long, value_name = "DIR")]
    pub heads: Option<PathBuf>,
    /// An earlier report (`--json`) on the same samples: adds the difference in accuracy, sample by sample, with its 95%
    /// interval
    #[arg(long, value_name = "REPORT")]
    pub compare: Option<PathBuf>,
    /// Which samples: a split of the task files, or a part of one, such as test[:20%]
    #[arg(long, default_value = "test")]
    pub split: Split,
    /// How samples reach the low-rank experts of an ESM++ model: each layer takes the one with the nearest prototype, or
    /// the one named like the task, or none
    #[arg(long, value_enum, default_value = "none")]
    pub routing: Routing,
    /// Factor of the deltas of BASE+delta:FILE; for deltas that a merge kept, its alpha
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub alpha: Option<f64>,
    #[command(flatten)]
    pub run: DeviceFlags,
    /// Print the report as JSON, in place of the table
    #[arg(long)]
    pub json: bool,
}

const HEADS: &str = "\
A merged model's features answer best to heads that were made for them. Each
expert's head is refitted in closed form, so that on the merged model's features
of some unlabelled samples it answers as the expert does on its own: one linear
solve a task, no labels and no training. It pays where merging has cost
accuracy. The table says what can be seen without labels: on how many of its
samples the merged model answers as the expert does, before and after, each
sample judged by a head that has not seen it.

The data of a task is named like its expert, or NAME=PATH: a task file (its
`proxy.*`, and its head if it has one), a folder of images, a text file. Heads
that are in no task file are those of models for classification.

Examples:
  esmerge heads merged/ --experts recipe.yaml --data tasks/*.safetensors \\
    -o merged/heads                 where `esmerge eval merged/` finds them
  esmerge heads merged/ --experts recipe.yaml --data cars=photos/cars \\
    --data mnist=photos/digits -o heads/
  esmerge heads merged/ --experts recipe.yaml --mode keep -o merged/heads
  esmerge export-head merged/ cars cars/";

#[derive(Debug, Args)]
#[command(after_help = HEADS)]
pub(super) struct Heads {
    /// The merged model: a folder, made here or elsewhere, or BASE+delta:FILE
    pub model: String,
    /// The recipe that names the experts
    #[arg(long, value_name = "RECIPE")]
    pub experts: PathBuf,
    /// Samples of each task, without labels [default: `task` of the recipe's models, or the data they are calibrated on]
    #[arg(long, value_name = "[NAME=]PATH", num_args = 1..)]
    pub data: Vec<String>,
    /// The folder to create, with a folder a head; it appears when it is complete
    #[arg(short, long)]
    pub out: PathBuf,
    /// auto: a head is refitted where its agreement with the expert rises; refit: every one; keep: none
    #[arg(long, default_value = "auto", value_parser = mode)]
    pub mode: Mode,
    /// Penalty of what a head changes by, in units of the trace of the features' Gram matrix
    #[arg(long, default_value_t = LAM, value_parser = positive)]
    pub lam: f64,
    /// Refit each head on its own task's samples alone: fewer forward passes
    #[arg(long)]
    pub own: bool,
    /// How many samples of a task at most; 4 are the least
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Chooses the samples of a folder or text file (of a safetensors file the first are taken)
    #[arg(long, default_value = "0")]
    pub seed: u64,
    /// Cut texts to so many tokens
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: Option<u32>,
    /// Replace an earlier output of esmerge
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub run: DeviceFlags,
    /// Print the report as JSON, in place of the table
    #[arg(long)]
    pub json: bool,
}

fn mode(text: &str) -> Result<Mode, String> {
    let found = Mode::NAMES.iter().find(|(name, _)| *name == text);
    found.map(|(_, mode)| *mode).ok_or_else(|| "use auto, refit or keep".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct ExportHead {
    /// The merged model, a folder with heads/NAME in it
    pub model: PathBuf,
    /// The head
    pub name: String,
    /// The folder to create; it appears when it is complete
    pub out: PathBuf,
    /// Largest output file, in bytes or with a unit
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub out_shard_size: u64,
    /// Replace an earlier output of esmerge
    #[arg(long)]
    pub force: bool,
}

/// How samples reach the experts of ESM++.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Routing {
    Prototype,
    Oracle,
    None,
}

const ROUTE: &str = "\
Samples may be
  a folder of images          resized and normalised as preprocessor_config.json
                              says
  a text file, or JSON lines  one sample a line (JSON: under `text`), by the
                              model's tokenizer.json
  a safetensors file          `input_ids` and `attention_mask`, or
                              `pixel_values`; a split of a task file by --split

Examples:
  esmerge route merged/ --data photos/
  esmerge route merged/ --data requests.jsonl --json
  esmerge route merged/ --data tasks/cars.safetensors --split 'test[:100]'";

#[derive(Debug, Args)]
#[command(after_help = ROUTE)]
pub(super) struct Route {
    /// The folder of a model made by merge_method esm++
    pub model: String,
    /// The samples
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// A split of a task file, or a part of one, such as test[:20%]
    #[arg(long, conflicts_with_all = ["samples", "max_length"])]
    pub split: Option<Split>,
    /// At most so many samples, chosen at random from a folder or text file [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: Option<u32>,
    /// Cut texts to so many tokens
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: Option<u32>,
    #[command(flatten)]
    pub run: DeviceFlags,
    /// Print one JSON object a sample, in place of the table
    #[arg(long)]
    pub json: bool,
}

/// Flags of commands that compute and write no model.
#[derive(Debug, Args)]
pub(super) struct DeviceFlags {
    /// auto, cpu, gpu, or gpu:NAME (see `esmerge merge --help`)
    #[arg(long, env = "ESMERGE_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Fetch models named ORG/NAME[@REVISION] from the Hugging Face hub, if they are not in its cache (HF_ENDPOINT, HF_TOKEN)
    #[arg(long)]
    pub download: bool,
    /// Print nothing but errors (and results)
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct Devices {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = BENCH)]
pub(super) struct Bench {
    /// auto (a hardware GPU, discrete before integrated, else the CPU), cpu, gpu, or gpu:NAME for the adapter whose name
    /// contains NAME (software adapters are used only by name)
    #[arg(long, env = "ESMERGE_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Kernels, instead of all
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub kernel: Vec<Kernel>,
    /// Sizes, instead of each kernel's own
    #[arg(long, value_name = "SIZE", value_delimiter = ',')]
    pub shape: Vec<Size>,
    /// Types of stored numbers, instead of all: float32, float16, bfloat16
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = dtype)]
    pub dtype: Vec<Dtype>,
    /// Time to spend on each
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds)]
    pub seconds: f64,
    /// Write the times to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Compare with times that --json wrote, by the fastest sample of each
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// How many percent slower is a regression
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = positive, requires = "compare")]
    pub tolerance: f64,
}

/// The value of `--fallback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Fallback {
    Cpu,
}

/// Flags of every command that computes and writes a model.
#[derive(Clone, Debug, Args)]
pub(super) struct RunFlags {
    /// auto (a hardware GPU, discrete before integrated, else the CPU), cpu, gpu, or gpu:NAME for the adapter whose name
    /// contains NAME (software adapters are used only by name)
    #[arg(long, env = "ESMERGE_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Time the ways to share out each class of products on this GPU, and take the fastest, in place of the built-in table. The
    /// choices are kept in ESMERGE_CACHE_DIR (else in the user's cache folder) and named in the report; they can move the
    /// last bits of the result
    #[arg(long)]
    pub autotune: bool,
    /// Bytes of deltas that a GPU merges at once, in place of what suits its speed (the report names it)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub batch_bytes: Option<u64>,
    /// Floating-point operations of one dispatch on a GPU, in place of what suits its speed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub dispatch_flops: Option<u64>,
    /// Floating-point operations of one submission to a GPU, in place of what suits its speed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub submit_flops: Option<u64>,
    /// Time every kernel on the GPU by its own clock, and list them after the table; the merge waits for each submission
    #[arg(long)]
    pub profile: bool,
    /// Memory for merged deltas, reading ahead and writing behind, beside what the work on a layer takes, in bytes or with a
    /// unit; deltas that do not fit go through a file, and with 0 nothing overlaps [default: a third of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = size_or_zero)]
    pub max_memory: Option<u64>,
    /// Largest output file, in bytes or with a unit: 500MB, 5GB, 2GiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub out_shard_size: u64,
    /// Fetch models named ORG/NAME[@REVISION] from the Hugging Face hub, if they are not in its cache (HF_ENDPOINT, HF_TOKEN)
    #[arg(long)]
    pub download: bool,
    /// Replace an earlier output of esmerge; the old one is removed when the new one is complete
    #[arg(long)]
    pub force: bool,
    /// Name every layer and tensor
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Print nothing but errors (and what --json asks for)
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the report as JSON on standard output, in place of the table
    #[arg(long)]
    pub json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "expected a number of seconds, such as 10 or 0.5".to_owned())
}

impl DeviceFlags {
    /// What becomes of models that are not there.
    pub fn download(&self) -> Download {
        Download { wanted: self.download, quiet: self.quiet }
    }
}

impl RunFlags {
    /// What becomes of models that are not there.
    pub fn download(&self) -> Download {
        Download { wanted: self.download, quiet: self.quiet }
    }

    /// Memory beside what the work on a layer takes, in bytes.
    pub fn max_memory(&self) -> u64 {
        self.max_memory.unwrap_or_else(memory::by_default)
    }

    /// The device, and why a better one was not taken.
    pub fn open_device(&self) -> Result<(Device, Option<String>), crate::backend::Error> {
        let autotune = self.autotune.then(|| Autotune { folder: cache_folder() });
        let RunFlags { batch_bytes, dispatch_flops, submit_flops, .. } = *self;
        self.device.open_with(&Config {
            autotune,
            batch_bytes,
            dispatch_flops,
            submit_flops,
            profile: self.profile,
            ..Config::default()
        })
    }
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err("a number is expected, such as 0.8".to_owned()),
    }
}

/// Seconds for one case of a bench.
fn seconds(text: &str) -> Result<f64, String> {
    const LONGEST: f64 = 3600.0;
    positive(text).and_then(|x| if x <= LONGEST { Ok(x) } else { Err(format!("{LONGEST} is the most")) })
}

fn positive(text: &str) -> Result<f64, String> {
    finite(text).and_then(|x| if x > 0.0 { Ok(x) } else { Err("it must be above 0".to_owned()) })
}

fn dtype(text: &str) -> Result<Dtype, String> {
    Dtype::from_name(text).ok_or_else(|| "use float32, float16 or bfloat16".to_owned())
}

/// A size, or nothing at all.
fn size_or_zero(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { size(text) }
}

/// `5GB`, `500 MB`, `2GiB`, `1000000`.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "a size is expected, such as 500MB, 5GB or 2GiB".to_owned();
    let digits = text.trim().find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.trim().len());
    let (number, unit) = text.trim().split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit;
    if bytes >= 1.0 { Ok(bytes as u64) } else { Err("at least one byte is needed".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_or_binary() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(size("1024"), Ok(1024));
        assert!(size("5 parsecs").is_err());
        assert!(size("0").is_err());
        assert_eq!((size_or_zero("0"), size_or_zero("1kB")), (Ok(0), Ok(1000)));
        assert!(size("").is_err());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn examples_and_lists_fit_eighty_columns_as_they_are_written() {
        for text in [EXAMPLES, BENCH, RECIPE, CAPTURE, EVAL, HEADS, ROUTE, INIT, METHODS, COMPLETIONS] {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }
}
