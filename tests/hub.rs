//! Models of the Hugging Face hub, from its cache and from a server on this machine that speaks its API.

#[path = "common/hub.rs"]
mod hub;
#[path = "common/place.rs"]
mod place;
#[path = "common/synthetic.rs"]
mod synthetic;

use hub::{COMMIT, Hub};
use place::{IDS, Place};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A hub with a Llama and two experts of it, and an empty place beside it that has the same models in `local`.
struct World {
    hub: Hub,
    place: Place,
    token: Option<&'static str>,
}

impl World {
    fn new() -> World {
        let world = World { hub: Hub::start(), place: Place::new(), token: None };
        for (name, seed) in [("base", 0), ("a", 1), ("b", 2)] {
            let local = format!("local/{name}");
            fs::create_dir_all(world.place.path("local")).unwrap();
            world.place.model(&local, "llama", seed);
            world.hub.model(&format!("org/{name}"), &world.place.path(&local));
        }
        world.place.write("recipe.yaml", recipe(""));
        world
    }

    fn run(&self, arguments: &[&str]) -> (Output, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esmerge"));
        command.current_dir(self.place.path(".")).args(arguments).env("ESMERGE_DEVICE", "cpu");
        for unset in ["HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        {
            command.env_remove(unset).env_remove(unset.to_lowercase());
        }
        command.env("HF_HOME", self.place.path("hf")).env("HF_ENDPOINT", &self.hub.address);
        command.envs(self.token.map(|token| ("HF_TOKEN", token)));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("panicked"), "{text}");
        (output, text)
    }

    fn succeeds(&self, arguments: &[&str]) {
        let (output, text) = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {text}");
    }

    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let (output, text) = self.run(arguments);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.place.path(&format!("hf/hub/models--org--{name}"))
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.repository(name).join("snapshots").join(COMMIT)
    }

    fn same(&self, a: &str, b: &str) {
        let read = |path: &str| fs::read(self.place.path(path).join("model.safetensors")).unwrap();
        assert!(read(a) == read(b), "{a} and {b} differ");
    }
}

fn recipe(prefix: &str) -> String {
    format!(
        "merge_method: task_arithmetic\nbase_model: {prefix}org/base\nmodels: [{{model: {prefix}org/a}}, {{model: {prefix}org/b@main}}]\n"
    )
}

#[test]
fn models_that_are_not_in_the_cache_are_fetched_once_when_that_is_asked_for() {
    let world = World::new();
    world.refuses(&["merge", "recipe.yaml", "out", "-q"], &["org/base", "does not exist", "--download"]);
    assert!(world.hub.asked("").is_empty(), "nothing is asked of the hub unless told");
    world.succeeds(&["merge", "recipe.yaml", "out", "--download"]);
    let local = recipe("").replace("org/b@main", "local/b").replace("org/", "local/");
    world.place.write("local.yaml", local);
    world.succeeds(&["merge", "local.yaml", "expected", "-q"]);
    world.same("out", "expected");
    // from now on they are there, by name, by branch and by commit
    let asked = world.hub.asked("").len();
    world.succeeds(&["merge", "recipe.yaml", "again", "-q", "--download"]);
    world.place.write("recipe.yaml", recipe("").replace("@main", &format!("@{COMMIT}")));
    world.succeeds(&["merge", "recipe.yaml", "third", "-q"]);
    assert_eq!(world.hub.asked("").len(), asked);
    world.same("again", "third");
}

#[test]
fn commands_take_names_of_the_hub() {
    let world = World::new();
    world.place.ids("ids.safetensors", &IDS);
    world.succeeds(&[
        "capture",
        "org/a",
        "--data",
        "ids.safetensors",
        "-o",
        "a.safetensors",
        "--download",
        "-q",
    ]);
    world.succeeds(&[
        "extract",
        "org/a",
        "--base",
        "org/base",
        "--rank",
        "2",
        "-o",
        "lora",
        "--download",
        "-q",
    ]);
    world.succeeds(&["apply", "org/base", "lora", "-o", "applied", "-q"]);
    world.hub.model("org/lora", &world.place.path("lora"));
    world.succeeds(&[
        "apply",
        "org/base",
        "org/lora",
        "-o",
        "again",
        "--download",
        "-q",
        "--allow-mismatch",
        "base_model_name_or_path",
    ]);
    world.same("applied", "again");
    world.succeeds(&[
        "capture",
        "org/base+org/lora",
        "--data",
        "ids.safetensors",
        "-o",
        "l.safetensors",
        "-q",
    ]);
    world.place.write("recipe.yaml", recipe(""));
    world.succeeds(&["merge", "recipe.yaml", "out", "--download", "-q", "--keep-delta", "d.safetensors"]);
    world.succeeds(&["rescale", "d.safetensors", "--base", "org/base", "--alpha", "1", "other", "-q"]);
    world.same("out", "other");
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let world = World::new();
    world.hub.contents.lock().unwrap().cuts = 2;
    world.succeeds(&["merge", "recipe.yaml", "out", "--download", "-q"]);
    let asked = world.hub.asked("/large/org/base/model.safetensors");
    assert!(asked.iter().any(|asked| asked.ends_with("bytes=512-")), "{asked:?}");
    assert!(asked.iter().any(|asked| asked.ends_with("bytes=1024-")), "{asked:?}");
    let fetched = fs::read(world.snapshot("base").join("model.safetensors")).unwrap();
    assert!(fetched == fs::read(world.place.path("local/base/model.safetensors")).unwrap());
}

#[test]
fn what_came_with_another_hash_is_not_kept() {
    let world = World::new();
    for file in ["config.json", "model.safetensors"] {
        world.hub.contents.lock().unwrap().spoilt = Some(format!("org/base/{file}"));
        world.refuses(&["merge", "recipe.yaml", "out", "--download", "-q"], &["org/base", file, "hash"]);
        assert!(!world.snapshot("base").join(file).exists());
    }
    world.hub.contents.lock().unwrap().spoilt = None;
    world.succeeds(&["merge", "recipe.yaml", "out", "--download", "-q"]);
}

#[test]
fn the_token_is_sent_and_its_lack_is_explained() {
    let mut world = World::new();
    world.hub.contents.lock().unwrap().token = Some("hf_secret".to_owned());
    let merge = ["merge", "recipe.yaml", "out", "--download", "-q"];
    world.refuses(&merge, &["org/base", "access is refused", "HF_TOKEN"]);
    world.token = Some("hf_secret");
    world.succeeds(&merge);
}

#[test]
fn what_the_hub_does_not_have_is_said() {
    let world = World::new();
    let merge = ["merge", "recipe.yaml", "out", "--download", "-q"];
    world.place.write("recipe.yaml", recipe("").replace("org/a", "org/none"));
    world.refuses(&merge, &["org/none", "no such model"]);
    world.hub.file("org/pickled/config.json", b"{}");
    world.hub.file("org/pickled/pytorch_model.bin", b"x");
    world.place.write("recipe.yaml", recipe("").replace("org/a", "org/pickled"));
    world.refuses(&merge, &["org/pickled", "pytorch_model.bin"]);
    assert!(!world.place.path("out").exists());
}

#[test]
fn incomplete_snapshots_are_named_and_completed() {
    let world = World::new();
    world.succeeds(&["merge", "recipe.yaml", "out", "--download", "-q"]);
    // the file of the weights is still on its way
    let weights = world.snapshot("a").join("model.safetensors");
    let blob = fs::canonicalize(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::rename(&blob, format!("{}.incomplete", blob.display())).unwrap();
    let words = ["org/a", "not complete", ".incomplete"];
    world.refuses(&["merge", "recipe.yaml", "second", "-q"], &words);
    world.place.ids("ids.safetensors", &IDS);
    world.refuses(&["capture", "org/a", "--data", "ids.safetensors", "-o", "a.safetensors"], &words);
    world.succeeds(&["merge", "recipe.yaml", "second", "-q", "--download"]);
    world.same("out", "second");
    // a shard of the index is missing
    let index = r#"{"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}"#;
    fs::remove_file(&weights).unwrap();
    fs::write(world.snapshot("a").join("model.safetensors.index.json"), index).unwrap();
    world.refuses(
        &["merge", "recipe.yaml", "third", "-q"],
        &["org/a", "not complete", "model-00001-of-00002.safetensors"],
    );
}
