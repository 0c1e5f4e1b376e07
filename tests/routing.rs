//! The dynamic model of ESM++ on every device: what it computes, that its choices do not depend on batches, and what the
//! program says of it. The model is the bundled example with experts.

#[path = "common/claims.rs"]
mod claims;
#[path = "common/devices.rs"]
mod devices;

use claims::Stated;
use devices::{Device, Work, for_each_device};
use esmerge::backend::cpu::Cpu;
use esmerge::backend::layers::Layers;
use esmerge::backend::{Op, Shape, Tensor};
use esmerge::calibration::{Capture, MAX_SIZE};
use esmerge::checkpoint::{
    Checkpoint, OutputDir, RouterFile, TensorFile, TensorSpec, TensorWriter, lora_keys, stored, widen,
};
use esmerge::data::{ModelSource, Split, Task};
use esmerge::eval::Evaluator;
use esmerge::model::{Images, NoTap, Part, Samples, Tap};
use esmerge::pipeline::{Options, Silent, merge};
use esmerge::plan::{Family, plan};
use esmerge::recipe::{Overrides, Recipe};
use esmerge::routing::{Choice, Decisions, Experts, Router};
use libtest_mimic::{Failed, Trial};
use pollster::block_on;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::sync::OnceLock;
use tempfile::TempDir;

fn main() {
    let mut trials = Vec::new();
    for device in for_each_device() {
        trials.push(on(&device, "oracle_routing_is_the_model_with_its_experts_folded_in", FoldedIn));
        trials.push(on(&device, "full_rank_experts_reproduce_the_routed_layers_on_the_proxies", FullRank));
        trials.push(on(&device, "samples_of_different_experts_pass_together_as_they_do_alone", Together));
        trials.push(on(&device, "shuffled_batches_give_identical_choices", Shuffled));
        trials.push(on(
            &device,
            "the_first_layer_takes_the_prototype_nearest_to_the_mean_of_its_tokens",
            Nearest,
        ));
    }
    type Check = fn();
    let checks: [(&str, Check); 4] = [
        ("eval_reports_routing_and_costs", eval_reports_routing_and_costs),
        ("route_says_which_expert_each_sample_takes", route_says_which_expert_each_sample_takes),
        ("a_broken_set_of_experts_is_refused", a_broken_set_of_experts_is_refused),
        ("a_model_without_experts_cannot_be_routed", a_model_without_experts_cannot_be_routed),
    ];
    for (name, check) in checks {
        trials.push(Trial::test(name, move || {
            check();
            Ok(())
        }));
    }
    claims::run(trials, Stated { cpu: 5, adapter: 5, besides: 4 });
}

fn on<W>(device: &Device, name: &str, work: W) -> Trial
where
    W: OnLayers + Copy + Send + 'static,
{
    let ignored = !device.present();
    let name = format!("{device}/{name}");
    let device = device.clone();
    Trial::test(name, move || device.with(Checked(work))).with_ignored_flag(ignored)
}

/// A claim about forward passes.
trait OnLayers {
    fn check<B: Layers>(self, backend: &B) -> Result<(), Failed>;
}

struct Checked<W>(W);

impl<W: OnLayers> Work for Checked<W> {
    type Output = Result<(), Failed>;

    fn run<B: Layers>(self, backend: &B) -> Self::Output {
        self.0.check(backend)
    }
}

const TASKS: [&str; 4] = ["fashion", "letters", "animals", "digits8"];

fn example(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vision").join(relative)
}

/// The example merged by ESM++, made once.
fn merged() -> &'static Path {
    static MERGED: OnceLock<PathBuf> = OnceLock::new();
    MERGED.get_or_init(|| merge_with_rank(8))
}

/// Merges the example into a folder that is left to the system's cleaning, as all threads use it until the process ends.
fn merge_with_rank(rank: usize) -> PathBuf {
    let text = fs::read_to_string(example("recipe.yaml")).unwrap();
    let text = text.replace("merge_method: esm", "merge_method: esm++");
    let text = text.replace("parameters:", &format!("parameters:\n  rank: {rank}"));
    let recipe = Recipe::parse(&text, &example("recipe.yaml"), &Overrides::default()).unwrap();
    let family = Family::open(&recipe).unwrap();
    let plan = plan(&recipe, &family).unwrap();
    let options = Options { shard_size: u64::MAX, max_memory: 1 << 30, ..Options::default() };
    let out = tempfile::tempdir().unwrap().keep().join("out");
    block_on(merge(
        &Cpu,
        &recipe,
        &family,
        &plan,
        OutputDir::create(&out, false).unwrap(),
        &options,
        &mut Silent,
    ))
    .unwrap();
    out
}

/// Test images of a task, prepared for the model.
fn images(task: &str, count: usize) -> Images {
    let source = ModelSource::checkpoint(merged()).unwrap();
    let task = Task::open(&example(&format!("tasks/{task}.safetensors"))).unwrap();
    let evaluator = Evaluator::new(&Cpu, &source).unwrap();
    match evaluator.samples(&task, &Split::whole("test"), 0..count).unwrap() {
        Samples::Images(images) => images,
        Samples::Text(_) => unreachable!("the example sees images"),
    }
}

/// The samples of several tasks in turn: no two neighbours of one task.
fn mixed(each: usize) -> Images {
    let by_task: Vec<Images> = TASKS.iter().map(|task| images(task, each)).collect();
    let order: Vec<(usize, usize)> = (0..each).flat_map(|i| (0..4).map(move |t| (t, i))).collect();
    let size = by_task[0].values.len() / each;
    let values = order.iter().flat_map(|&(t, i)| by_task[t].values[i * size..(i + 1) * size].to_vec());
    Images { count: order.len(), values: values.collect(), ..by_task[0] }
}

fn pick(images: &Images, order: &[usize]) -> Samples {
    let size = images.values.len() / images.count;
    let values = order.iter().flat_map(|&i| images.values[i * size..(i + 1) * size].to_vec()).collect();
    Samples::Images(Images { count: order.len(), values, ..*images })
}

/// Features and decisions of some samples in one batch.
fn pass<B: Layers>(backend: &B, samples: &Samples, choice: Choice) -> (Vec<f32>, Decisions) {
    let source = ModelSource::checkpoint(merged()).unwrap();
    let experts = Experts::open(merged()).unwrap();
    let mut router = Router::new(backend, &experts, choice);
    let model = source.model(backend).unwrap();
    let features = block_on(model.run(samples, None, &mut router)).unwrap();
    (features, router.finish().unwrap())
}

/// `||a - b|| / ||b||`
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)))
        / norm(&mut b.iter().map(|&b| f64::from(b)))
}

fn all(images: &Images) -> Samples {
    Samples::Images(images.clone())
}

fn floats(file: &TensorFile, name: &str) -> Vec<f32> {
    let meta = file.meta(name).unwrap();
    widen(meta.float().unwrap(), &file.read_values(name, 0..meta.elements()).unwrap())
}

// ---- what it computes ----

#[derive(Clone, Copy)]
struct FoldedIn;

impl OnLayers for FoldedIn {
    fn check<B: Layers>(self, backend: &B) -> Result<(), Failed> {
        for (t, task) in TASKS.into_iter().enumerate() {
            let images = images(task, 40);
            let (dynamic, decisions) = pass(backend, &all(&images), Choice::Oracle(t));
            assert_eq!(decisions.samples(), 0, "nothing is decided where the task is given");
            let folder = tempfile::tempdir()?;
            fold_in(task, folder.path());
            let source = ModelSource::checkpoint(folder.path())?;
            let plain = block_on(source.model(backend)?.run(&all(&images), None, &mut NoTap))?;
            let error = distance(&dynamic, &plain);
            assert!(error < 1e-5, "{task}: {error:e}");

            let source = ModelSource::checkpoint(merged())?;
            let without = block_on(source.model(backend)?.run(&all(&images), None, &mut NoTap))?;
            assert!(distance(&without, &plain) > 1e-2, "{task}: the expert does something");
        }
        Ok(())
    }
}

/// Writes the merged model with `W + B A` of a task in place of its weights.
fn fold_in(task: &str, folder: &Path) {
    let model = Checkpoint::open(merged()).unwrap();
    let adapter = merged().join("adapters").join(task).join("adapter_model.safetensors");
    let adapter = TensorFile::open(&adapter).unwrap();
    let specs: Vec<TensorSpec> = model
        .names()
        .map(|name| {
            let meta = model.get(name).unwrap();
            TensorSpec { name: name.into(), dtype: meta.dtype, shape: meta.shape.clone() }
        })
        .collect();
    let path = folder.join("model.safetensors");
    let mut writer = TensorWriter::create(&path, &specs, &BTreeMap::new()).unwrap();
    for spec in &specs {
        assert_eq!(spec.dtype, stored(esmerge::backend::Dtype::F32));
        let mut weight = floats(model.place(&spec.name).unwrap().0, &spec.name);
        let [a, b] = lora_keys(&spec.name);
        if adapter.tensors().contains_key(&a) {
            let rank = adapter.meta(&a).unwrap().shape[0];
            let (a, b, d_in) = (floats(&adapter, &a), floats(&adapter, &b), spec.shape[1]);
            for (k, value) in weight.iter_mut().enumerate() {
                let (i, j) = (k / d_in, k % d_in);
                let sum: f64 =
                    (0..rank).map(|l| f64::from(b[i * rank + l]) * f64::from(a[l * d_in + j])).sum();
                *value = (f64::from(*value) + sum) as f32;
            }
        }
        writer.write(bytemuck::cast_slice(&weight)).unwrap();
    }
    writer.finish().unwrap();
    fs::copy(merged().join("config.json"), folder.join("config.json")).unwrap();
}

#[derive(Clone, Copy)]
struct FullRank;

impl OnLayers for FullRank {
    fn check<B: Layers>(self, backend: &B) -> Result<(), Failed> {
        static MERGED: OnceLock<PathBuf> = OnceLock::new();
        let folder = MERGED.get_or_init(|| merge_with_rank(256)); // as many outputs as the largest routed layer has
        let (experts, merged) = (Experts::open(folder)?, Checkpoint::open(folder)?);
        for (t, task) in TASKS.into_iter().enumerate() {
            let expert = Checkpoint::open(&example(&format!("experts/{task}")))?;
            let proxies = TensorFile::open(&example(&format!("calibration/{task}.safetensors")))?;
            let mut router = Router::new(backend, &experts, Choice::Oracle(t));
            for weight in experts.weights() {
                let (d_out, d_in) = merged.get(weight).unwrap().matrix().unwrap();
                let source = experts.prototypes_of(weight).unwrap();
                let x = floats(&proxies, &format!("{source}.input"));
                let x = backend.upload(Shape::matrix(x.len() / d_in, d_in), &x)?;
                let outputs = |model: &Checkpoint| {
                    let w = floats(model.place(weight).unwrap().0, weight);
                    backend.matmul(
                        &x,
                        Op::None,
                        &backend.upload(Shape::matrix(d_out, d_in), &w)?,
                        Op::Transpose,
                    )
                };
                let lengths = vec![x.shape().rows];
                let segments = Rc::new(backend.segments(&lengths)?);
                let part = Part {
                    lengths,
                    segments,
                    rotary: Vec::new(),
                    positions: None,
                    hidden: backend.duplicate(&x)?,
                };
                let (mut y, want) = (outputs(&merged)?, block_on(backend.download(&outputs(&expert)?))?);
                let without = block_on(backend.download(&y))?;
                block_on(router.input(&[weight], &x, &part))?;
                router.output(weight, &mut y)?;
                let error = distance(&block_on(backend.download(&y))?, &want);
                assert!(error < 1e-4, "{task} {weight}: {error:e}");
                assert!(distance(&without, &want) > 1e-2, "{task} {weight}: the expert does something");
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Together;

impl OnLayers for Together {
    fn check<B: Layers>(self, backend: &B) -> Result<(), Failed> {
        let images = mixed(8);
        let (features, decisions) = pass(backend, &all(&images), Choice::Prototype);
        let d = features.len() / images.count;
        let taken: Vec<usize> = decisions.votes().iter().map(|vote| vote.expert).collect();
        let mut experts = taken.clone();
        experts.sort_unstable();
        experts.dedup();
        assert!(experts.len() > 1, "one batch, several experts: {taken:?}");
        for i in 0..images.count {
            let (alone, own) = pass(backend, &pick(&images, &[i]), Choice::Prototype);
            assert_eq!(own.votes()[0], decisions.votes()[i]);
            let error = distance(&features[i * d..(i + 1) * d], &alone);
            assert!(error < 1e-5, "sample {i}: {error:e}");
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Shuffled;

impl OnLayers for Shuffled {
    fn check<B: Layers>(self, backend: &B) -> Result<(), Failed> {
        let images = mixed(16);
        let n = images.count;
        let (_, whole) = pass(backend, &all(&images), Choice::Prototype);
        assert_eq!(whole.samples(), n);
        assert_eq!(whole.layers().len(), 12, "qkv and fc1 of six blocks");
        // 7 has no factor in common with 64
        let shuffled: Vec<usize> = (0..n).map(|i| (i * 7 + 3) % n).collect();
        for batch in [n, 17, 1] {
            let some = if batch == 1 { &shuffled[..8] } else { &shuffled[..] };
            for order in some.chunks(batch) {
                let (_, decisions) = pass(backend, &pick(&images, order), Choice::Prototype);
                for layer in whole.layers() {
                    // the cosines agree to the last bit, so that no choice can hang on how samples are batched
                    let by_sample: Vec<&[f32]> = whole.scores(layer).chunks(TASKS.len()).collect();
                    let expected: Vec<u32> =
                        order.iter().flat_map(|&i| by_sample[i]).map(|score| score.to_bits()).collect();
                    let got: Vec<u32> = decisions.scores(layer).iter().map(|score| score.to_bits()).collect();
                    assert_eq!(got, expected, "batches of {batch}, {layer}");
                    let routes: Vec<usize> = order.iter().map(|&i| whole.routes(layer)[i]).collect();
                    assert_eq!(decisions.routes(layer), routes);
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Nearest;

impl OnLayers for Nearest {
    fn check<B: Layers>(self, backend: &B) -> Result<(), Failed> {
        const LAYER: &str = "vision_model.encoder.layers.0.self_attn.q_proj.weight";
        let images = mixed(5);
        let (_, decisions) = pass(backend, &all(&images), Choice::Prototype);
        // nothing before the first layer is routed, so that what enters it is what enters the static model's
        let source = ModelSource::checkpoint(merged())?;
        let mut capture = Capture::new(backend, source.model(backend)?, &all(&images), MAX_SIZE)?;
        let captured = block_on(capture.next_block(|weight| weight == LAYER))?;
        let entry = &captured.iter().find(|c| c.weight == LAYER).unwrap().entry;
        let (x, d) = (entry.input.as_ref().unwrap(), entry.d_in);
        let prototypes = RouterFile::open(merged())?.read(LAYER)?;
        let tokens = entry.tokens / images.count;
        let nearest = |sample: &[f32]| {
            let mean: Vec<f64> =
                (0..d).map(|j| sample.iter().skip(j).step_by(d).map(|&v| f64::from(v)).sum()).collect();
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let cosine = |p: &[f32]| {
                let dot: f64 = mean.iter().zip(p).map(|(m, &p)| m * f64::from(p)).sum();
                dot / norm(&mut p.iter().map(|&p| f64::from(p)))
            };
            let scores: Vec<f64> = prototypes.chunks(d).map(cosine).collect();
            (0..scores.len()).fold(0, |best, t| if scores[t] > scores[best] { t } else { best })
        };
        let expected: Vec<usize> = x.chunks(tokens * d).map(nearest).collect();
        assert_eq!(decisions.routes(LAYER), expected);
        Ok(())
    }
}

// ---- the program ----

fn esmerge(arguments: &[&str]) -> Output {
    let program = Command::new(env!("CARGO_BIN_EXE_esmerge"))
        .args(arguments)
        .args(["--device", "cpu"])
        .current_dir(example(""))
        .env_remove("ESMERGE_DEVICE")
        .output();
    program.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn eval_json(routing: &str) -> Value {
    let mut arguments =
        vec!["eval", merged().to_str().unwrap(), "--json", "-q", "--routing", routing, "--task"];
    let files: Vec<String> = TASKS.iter().map(|task| format!("tasks/{task}.safetensors")).collect();
    arguments.extend(files.iter().map(String::as_str));
    let output = esmerge(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn eval_reports_routing_and_costs() {
    let (none, prototype, oracle) = (eval_json("none"), eval_json("prototype"), eval_json("oracle"));
    let average = |report: &Value| report["average"].as_f64().unwrap();
    println!("none {}, prototype {}, oracle {}", average(&none), average(&prototype), average(&oracle));
    assert!(none.get("routing").is_none());
    assert!(average(&oracle) > average(&none), "{} {}", average(&oracle), average(&none));
    // six blocks of qkv and fc1, width 64, rank 8
    let parameters = 6 * 8 * ((192 + 64) + (256 + 64));
    for report in [&prototype, &oracle] {
        let routing = &report["routing"];
        assert_eq!(routing["parameters_per_task"], parameters);
        assert_eq!(routing["flops_per_token"], 2 * parameters);
        assert_eq!(routing["routing_values"], 6 * 2 * 64 * 4);
    }
    assert!(oracle["routing"].get("layers").is_none(), "nothing was decided");
    let routing = &prototype["routing"];
    assert_eq!(routing["layers"].as_object().unwrap().len(), 12);
    for confusion in routing["layers"].as_object().unwrap().values().chain([&routing["vote"]]) {
        for task in TASKS {
            let counts = confusion[task].as_array().unwrap();
            assert_eq!(counts.len(), 4);
            assert_eq!(counts.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 500);
        }
    }
    let arguments = ["eval", merged().to_str().unwrap(), "--task", "tasks/animals.safetensors"];
    let table = esmerge(&[&arguments[..], &["--routing", "prototype"]].concat());
    let table = text(&table.stdout);
    for words in ["right choices", "0.self_attn.q_proj", "vote", "digits8", &parameters.to_string()] {
        assert!(table.contains(words), "{words} is not in {table}");
    }
    let plain = esmerge(&arguments);
    assert!(text(&plain.stderr).contains("--routing prototype"), "{}", text(&plain.stderr));
}

fn route_says_which_expert_each_sample_takes() {
    let arguments = ["route", merged().to_str().unwrap(), "--data", "tasks/letters.safetensors"];
    let output = esmerge(&[&arguments[..], &["--split", "test[:20]", "--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 20);
    let (_, decisions) = pass(&Cpu, &all(&images("letters", 20)), Choice::Prototype);
    for (i, (line, vote)) in lines.iter().zip(decisions.votes()).enumerate() {
        assert_eq!(line["sample"], i);
        assert_eq!(line["expert"], TASKS[vote.expert]);
        let layers = line["layers"].as_object().unwrap();
        assert_eq!(layers.len(), 12);
        for (layer, expert) in layers {
            assert_eq!(expert, TASKS[decisions.routes(layer)[i]]);
        }
        let votes = line["votes"].as_object().unwrap();
        assert_eq!(votes.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 12);
    }
    // a task file's proxies where no split is named, as a table
    let output = esmerge(&[&arguments[..], &["--samples", "3"]].concat());
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for words in ["expert in each layer", "of 12", "0 fashion, 1 letters", "5.mlp.fc1"] {
        assert!(table.contains(words), "{words} is not in {table}");
    }
    assert_eq!(table.lines().filter(|line| line.contains(" of 12")).count(), 3);
}

fn copy_of_merged() -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target);
            } else {
                fs::copy(&path, &target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(merged(), folder.path());
    folder
}

fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = esmerge(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(text(&output.stdout), "");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn a_broken_set_of_experts_is_refused() {
    let broken = |breaking: &dyn Fn(&Path), words: &[&str]| {
        let folder = copy_of_merged();
        breaking(folder.path());
        let path = folder.path().to_str().unwrap();
        refused(&["route", path, "--data", "tasks/letters.safetensors"], 1, words);
    };
    let adapter = |folder: &Path, file: &str| folder.join("adapters/letters").join(file);
    broken(
        &|f| fs::remove_dir_all(f.join("adapters/letters")).unwrap(),
        &["adapters/letters", "does not exist"],
    );
    broken(&|f| fs::remove_file(adapter(f, "adapter_model.safetensors")).unwrap(), &["adapter_model"]);
    broken(
        &|f| fs::write(adapter(f, "adapter_config.json"), "{}").unwrap(),
        &["adapter_config.json", "LoRA"],
    );
    broken(
        &|f| {
            let path = adapter(f, "adapter_config.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"lora_alpha\": 8", "\"lora_alpha\": 16")).unwrap();
        },
        &["adapter_config.json", "lora_alpha = r"],
    );
    broken(
        &|f| {
            fs::copy(merged().join("router.safetensors"), adapter(f, "adapter_model.safetensors")).unwrap();
        },
        &["adapters/letters/adapter_model.safetensors", "factors"],
    );
    broken(
        &|f| {
            fs::copy(merged().join("model.safetensors"), f.join("router.safetensors")).unwrap();
        },
        &["router.safetensors", "esmerge-router-1"],
    );
    broken(
        &|f| {
            let bytes = fs::read(f.join("router.safetensors")).unwrap();
            fs::write(f.join("router.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
        },
        &["router.safetensors", "truncated"],
    );
}

fn a_model_without_experts_cannot_be_routed() {
    refused(&["route", "base", "--data", "tasks/letters.safetensors"], 1, &["router.safetensors", "esm++"]);
    let tasks = ["--task", "tasks/letters.safetensors"];
    refused(&[&["eval", "base", "--routing", "prototype"], &tasks[..]].concat(), 1, &["router.safetensors"]);
    // a task that no expert is named after
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.safetensors");
    let file = TensorFile::open(&example("tasks/letters.safetensors")).unwrap();
    let specs: Vec<TensorSpec> = file
        .tensors()
        .iter()
        .map(|(name, meta)| TensorSpec { name: name.clone(), dtype: meta.dtype, shape: meta.shape.clone() })
        .collect();
    let mut writer = TensorWriter::create(&other, &specs, &BTreeMap::new()).unwrap();
    for (name, meta) in file.tensors() {
        writer.write(&file.read_bytes(name, 0..meta.bytes).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let other = other.to_str().unwrap();
    let arguments = ["eval", merged().to_str().unwrap(), "--routing", "oracle", "--task", other];
    refused(&arguments, 2, &["`other`", "fashion, letters, animals, digits8"]);
    // and without a name it can be routed by its prototypes all the same
    let arguments = ["eval", merged().to_str().unwrap(), "--routing", "prototype", "--task", other];
    assert!(esmerge(&arguments).status.success());
}
