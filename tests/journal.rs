//! Merges that are killed, resumed, shared out and joined: the same bytes as of one run that nobody disturbed.
//!
//! `ESMERGE_KILLS` says how many runs are killed; 48 if it is not set.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with recipes for the bundled example.
struct Place(tempfile::TempDir);

/// A merge: its recipe, and the flags of its command line.
#[derive(Clone, Copy, Debug)]
struct Kind {
    recipe: &'static str,
    flags: &'static [&'static str],
}

/// Merges of every kind that leaves its work in the journal.
const KINDS: [Kind; 7] = [
    Kind { recipe: "esm", flags: &[] },
    Kind { recipe: "esm", flags: &["--keep-delta", "kept.safetensors"] },
    Kind { recipe: "esm", flags: &["--out-shard-size", "100KB", "--max-memory", "0"] },
    Kind { recipe: "plus", flags: &[] },
    Kind { recipe: "search", flags: &[] },
    Kind { recipe: "captured", flags: &[] },
    Kind { recipe: "ties", flags: &["--out-shard-size", "100KB"] },
];

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vision");
        let recipe = |method: &str, model: &dyn Fn(&str) -> String, parameters: &str| {
            let models: String = ["fashion", "letters", "animals", "digits8"]
                .map(|name| {
                    format!("  - {{model: {e}/experts/{name}{}}}\n", model(name), e = example.display())
                })
                .concat();
            format!(
                "merge_method: {method}\nbase_model: {}/base\nmodels:\n{models}parameters: {{{parameters}}}\n\
                 out_dtype: float32\n",
                example.display()
            )
        };
        let calibrated =
            |name: &str| format!(", calibration: {}/calibration/{name}.safetensors", example.display());
        let data = |name: &str| {
            format!(", calibration: {{data: {}/tasks/{name}.safetensors, samples: 4}}", example.display())
        };
        place.write("esm.yaml", &recipe("esm", &calibrated, "alpha: 0.5"));
        place.write("plus.yaml", &recipe("esm++", &calibrated, "alpha: 0.5"));
        place.write("search.yaml", &recipe("tsv_m", &data, "alpha: {search: consistency}"));
        place.write("captured.yaml", &recipe("esm", &data, "alpha: 0.5"));
        place.write("ties.yaml", &recipe("ties", &|_| String::new(), "density: 0.4, scope: model"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esmerge"));
        command.args(arguments).env("ESMERGE_DEVICE", "cpu").env("RAYON_NUM_THREADS", "1");
        command.current_dir(self.0.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        stderr
    }

    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {stderr}");
        words.iter().for_each(|word| assert!(stderr.contains(word), "`{word}` is not in: {stderr}"));
    }

    /// The files of an output, and of kept deltas.
    fn result(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        read(&self.path("out"), "", &mut files);
        if let Ok(kept) = fs::read(self.path("kept.safetensors")) {
            files.insert("kept.safetensors".to_owned(), kept);
        }
        files
    }

    /// Takes the result away.
    fn clear(&self) {
        let _ = fs::remove_dir_all(self.path("out"));
        let _ = fs::remove_file(self.path("kept.safetensors"));
    }

    /// What runs have left beside their results and the recipes.
    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name != "out" && name != "kept.safetensors" && !name.ends_with(".yaml")).collect()
    }

    /// The result of a merge that nothing disturbs and that keeps no journal, and how long it takes.
    fn undisturbed(&self, kind: Kind) -> (BTreeMap<String, Vec<u8>>, Duration) {
        let started = Instant::now();
        let arguments = merge(kind);
        let arguments: Vec<&str> = arguments.iter().map(|word| &**word).chain(["--no-journal"]).collect();
        self.succeeds(&arguments);
        let spent = started.elapsed();
        let result = self.result();
        self.clear();
        (result, spent)
    }
}

fn read(folder: &Path, name: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = format!("{name}/{}", path.file_name().unwrap().to_string_lossy());
        match path.is_dir() {
            true => read(&path, &name, files),
            false => drop(files.insert(name, fs::read(&path).unwrap())),
        }
    }
}

fn same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{what}: {name} differs");
    }
}

fn merge(kind: Kind) -> Vec<String> {
    let recipe = format!("{}.yaml", kind.recipe);
    let words = [&["merge", &recipe, "out", "-q"][..], kind.flags].concat();
    words.into_iter().map(str::to_owned).collect()
}

/// Pseudo-random numbers in 0..1.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Kills a run after a while; whether it was still at it.
fn killed(mut run: Child, after: Duration) -> bool {
    std::thread::sleep(after);
    let running = run.try_wait().unwrap().is_none();
    let _ = run.kill();
    run.wait().unwrap();
    running
}

fn kills() -> usize {
    std::env::var("ESMERGE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(48)
}

const AT_ONCE: [&str; 2] = ["--journal-every", "0"];

#[test]
fn killed_at_any_moment_a_merge_goes_on_to_the_same_bytes() {
    let (place, mut chance, mut done, mut reused) = (Place::new(), Chance(1), 0, 0);
    let expected: Vec<_> = KINDS.iter().map(|kind| place.undisturbed(*kind)).collect();
    while done < kills() {
        for (kind, (expected, spent)) in KINDS.iter().zip(&expected) {
            let arguments = merge(*kind);
            let mut arguments: Vec<&str> = arguments.iter().map(|word| &**word).collect();
            arguments.extend(AT_ONCE);
            for _ in 0..2 {
                let run = place.command(&arguments).spawn().unwrap();
                done += usize::from(killed(run, spent.mul_f64(1.1 * chance.next())));
                if place.path("out").exists() {
                    same(
                        &place.result_of_model(),
                        &without_deltas(expected),
                        "a complete model has the name",
                    );
                    break;
                }
            }
            if !place.path("out").exists() {
                arguments.retain(|word| *word != "-q");
                reused += usize::from(place.succeeds(&arguments).contains("done already"));
            } else if expected.contains_key("kept.safetensors") {
                // killed between the two names: the model is complete, and says so; the deltas are made again
                arguments.push("--force");
                place.succeeds(&arguments);
            }
            same(&place.result(), expected, &format!("{kind:?}"));
            place.clear();
            let left: Vec<String> = place.left().into_iter().filter(|name| name != "out.esmerge").collect();
            assert_eq!(left, Vec::<String>::new(), "{kind:?}");
            let _ = fs::remove_dir_all(place.path("out.esmerge")); // of a run killed after its output had its name
        }
    }
    assert!(reused * 4 > done, "{reused} of {done} runs found something to go on with");
}

impl Place {
    fn result_of_model(&self) -> BTreeMap<String, Vec<u8>> {
        without_deltas(&self.result())
    }
}

fn without_deltas(result: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    result
        .iter()
        .filter(|(name, _)| *name != "kept.safetensors")
        .map(|(n, b)| (n.clone(), b.clone()))
        .collect()
}

#[test]
fn shares_joined_are_the_bytes_of_one_run_though_two_were_killed() {
    let (place, mut chance) = (Place::new(), Chance(2));
    for kind in [KINDS[0], KINDS[2], KINDS[3], KINDS[4], KINDS[6]] {
        let (expected, spent) = place.undisturbed(kind);
        let arguments = merge(kind);
        let arguments: Vec<&str> = arguments.iter().map(|word| &**word).chain(AT_ONCE).collect();
        let share = |k: usize| [&arguments[..], &["--shard", SHARES[k]]].concat();
        let mut running: Vec<Child> = Vec::new();
        for k in 0..SHARES.len() {
            let run = place.command(&share(k)).spawn().unwrap();
            match k {
                2 | 5 => drop(killed(run, spent.mul_f64(chance.next()))),
                _ => running.push(run),
            }
        }
        for run in running {
            let output = run.wait_with_output().unwrap();
            assert!(output.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        [2, 5].iter().for_each(|&k| drop(place.succeeds(&share(k))));
        let quarters: Vec<Child> = (1..=2)
            .map(|k| place.command(&["join", "out", "-q", "--shard", &format!("{k}/2")]).spawn().unwrap())
            .collect();
        for run in quarters {
            let output = run.wait_with_output().unwrap();
            assert!(output.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let join = place.command(&["join", "out", "-q", "--journal-every", "0"]).spawn().unwrap();
        if killed(join, spent.mul_f64(0.5 * chance.next())) || !place.path("out").exists() {
            place.succeeds(&["join", "out", "-q"]);
        }
        same(&place.result(), &expected, &format!("{kind:?}"));
        place.clear();
        assert_eq!(place.left(), Vec::<String>::new(), "{kind:?}");
    }
}

const SHARES: [&str; 8] = ["1/8", "2/8", "3/8", "4/8", "5/8", "6/8", "7/8", "8/8"];

#[test]
fn a_journal_that_outlived_its_output_is_removed_by_the_next_run() {
    let place = Place::new();
    let journal = |name: &str| fs::rename(place.path(name), place.path("out.esmerge")).unwrap();
    for command in [vec!["join", "out"], vec!["merge", "esm.yaml", "out"]] {
        // a journal as it is just before the output gets its name, beside the output
        for share in ["1/2", "2/2"] {
            place.succeeds(&["merge", "esm.yaml", "out", "--shard", share]);
        }
        fs::rename(place.path("out.esmerge"), place.path("kept.esmerge")).unwrap();
        let _ = fs::remove_dir_all(place.path("kept.esmerge/output"));
        place.succeeds(&["merge", "esm.yaml", "out"]);
        let result = place.result();
        journal("kept.esmerge");
        match command[0] {
            "join" => assert!(place.succeeds(&command).contains("out is complete")),
            _ => place.refused(&command, &["out", "not empty"]),
        }
        same(&place.result(), &result, "what was complete");
        assert_eq!(place.left(), Vec::<String>::new(), "{command:?}");
        place.clear();
    }
}

#[test]
fn what_is_missing_is_named_with_the_command_that_does_it() {
    let place = Place::new();
    place.refused(&["join", "out"], &["no earlier run has left work there"]);
    assert_eq!(place.left(), Vec::<String>::new());
    place.succeeds(&["merge", "esm.yaml", "out", "--shard", "1/3"]);
    place.succeeds(&["merge", "esm.yaml", "out", "--shard", "3/3"]);
    place.refused(&["join", "out"], &["shares 2 of 3", "esmerge merge", "--shard 2/3"]);
    place.succeeds(&["merge", "esm.yaml", "out", "--shard", "2/3"]);
    place.succeeds(&["join", "out"]);
}

#[test]
fn work_of_something_else_is_refused_by_what_has_changed_and_begun_again_where_asked() {
    let place = Place::new();
    place.refused(
        &["merge", "esm.yaml", "out", "--resume"],
        &["no earlier run has left work there", "--resume"],
    );
    assert_eq!(place.left(), Vec::<String>::new());
    place.succeeds(&["merge", "esm.yaml", "out", "--shard", "1/2"]);
    let text = fs::read_to_string(place.path("esm.yaml")).unwrap();
    let again = ["merge", "esm.yaml", "out"];
    place.refused(
        &[&again[..], &["--alpha", "0.7"]].concat(),
        &["--alpha is 0.7, and was not given", "--fresh"],
    );
    place.refused(
        &[&again[..], &["--out-shard-size", "1MB"]].concat(),
        &["--out-shard-size is 1000000 bytes"],
    );
    place.write("esm.yaml", &text.replace("alpha: 0.5", "alpha: 0.6"));
    place.refused(&again, &["the recipe", "esm.yaml", "has changed", "--fresh"]);
    place.refused(&[&again[..], &["--shard", "2/2"]].concat(), &["has changed"]);
    assert!(place.path("out.esmerge/plan.json").exists(), "a refusal loses nothing");
    place.succeeds(&[&again[..], &["--fresh"]].concat());
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn inputs_that_were_written_again_are_named_unless_all_of_them_is_hashed() {
    let place = Place::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vision");
    copy(&example, &place.path("models"));
    place.write(
        "r.yaml",
        &fs::read_to_string(example.join("recipe.yaml"))
            .unwrap()
            .replace(": base", ": models/base")
            .replace(": experts", ": models/experts")
            .replace(": calibration", ": models/calibration"),
    );
    let touch = || {
        let file =
            fs::File::options().write(true).open(place.path("models/experts/letters/model.safetensors"));
        file.unwrap().set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
    };
    for verify in [&[][..], &["--verify"]] {
        place.succeeds(&[&["merge", "r.yaml", "out", "--shard", "1/2"][..], verify].concat());
        touch();
        let rest = [&["merge", "r.yaml", "out", "-q"][..], verify].concat();
        match verify.is_empty() {
            true => place.refused(&rest, &["letters/model.safetensors was written again"]),
            false => drop(place.succeeds(&rest)),
        }
        let _ = fs::remove_dir_all(place.path("out.esmerge"));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().file_name());
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false => drop(fs::copy(&path, to.join(name)).unwrap()),
        }
    }
}

#[cfg(unix)]
#[test]
fn a_signal_stops_at_once_and_names_the_command_that_goes_on() {
    let place = Place::new();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut arguments = vec!["merge", "search.yaml", "out"];
        arguments.extend(AT_ONCE);
        let run = place.command(&arguments).spawn().unwrap();
        while fs::metadata(place.path("out.esmerge/1-of-1.list")).map_or(0, |meta| meta.len()) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let started = Instant::now();
        assert!(Command::new("kill").args(["-s", signal, &run.id().to_string()]).status().unwrap().success());
        let output = run.wait_with_output().unwrap();
        let (stderr, spent) = (String::from_utf8_lossy(&output.stderr).into_owned(), started.elapsed());
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(spent < Duration::from_secs(1), "{spent:?}");
        assert!(stderr.contains("go on with: esmerge merge search.yaml out --journal-every 0"), "{stderr}");
        if signal == "INT" {
            fs::remove_dir_all(place.path("out.esmerge")).unwrap();
        }
    }
    let stderr = place.succeeds(&["merge", "search.yaml", "out", "--resume"]);
    assert!(stderr.contains("done already"), "{stderr}");
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn damaged_journals_are_refused_or_done_again_and_never_believed() {
    let (place, mut chance) = (Place::new(), Chance(3));
    let (expected, _) = place.undisturbed(KINDS[0]);
    place.succeeds(&["merge", "esm.yaml", "out", "-q", "--shard", "1/2"]);
    copy(&place.path("out.esmerge"), &place.path("whole.yaml"));
    for name in ["plan.json", "1-of-2.list", "1-of-2.values"] {
        for _ in 0..6 {
            let _ = fs::remove_dir_all(place.path("out.esmerge"));
            copy(&place.path("whole.yaml"), &place.path("out.esmerge"));
            let path = place.path("out.esmerge").join(name);
            let mut bytes = fs::read(&path).unwrap();
            match chance.next() {
                c if c < 0.4 => bytes.truncate((bytes.len() as f64 * chance.next()) as usize),
                _ => {
                    let at = (bytes.len() as f64 * chance.next()) as usize;
                    bytes[at] ^= 1 << (8.0 * chance.next()) as u32;
                }
            }
            fs::write(&path, bytes).unwrap();
            let output = place.run(&["merge", "esm.yaml", "out", "-q"]);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => same(&place.result(), &expected, name),
                Some(1) => assert!(stderr.contains("--fresh"), "{stderr}"),
                code => panic!("{code:?}: {stderr}"),
            }
            place.clear();
        }
    }
}

#[test]
fn of_several_documents_those_that_are_merged_are_not_merged_again() {
    let (place, mut chance) = (Place::new(), Chance(4));
    let esm = fs::read_to_string(place.path("esm.yaml")).unwrap();
    let base = esm.lines().find(|line| line.starts_with("base_model")).unwrap();
    let fashion = esm.lines().find(|line| line.contains("fashion")).unwrap().split(',').next().unwrap();
    let last = format!("merge_method: linear\n{base}\nmodels:\n  - {{model: first}}\n{fashion}}}\n");
    place.write("documents.yaml", &format!("name: first\n{esm}---\n{last}"));
    let kind = Kind { recipe: "documents", flags: &[] };
    let (expected, spent) = place.undisturbed(kind);
    let arguments = ["merge", "documents.yaml", "out", "--journal-every", "0"];
    let mut used = 0;
    for _ in 0..8 {
        let run = place.command(&arguments).spawn().unwrap();
        killed(run, spent.mul_f64(chance.next()));
        if !place.path("out").exists() {
            used += usize::from(place.succeeds(&arguments).contains("done already"));
        }
        same(&place.result(), &expected, "documents");
        place.clear();
        let _ = fs::remove_dir_all(place.path("out.esmerge"));
        let _ = fs::remove_dir_all(place.path("out.parts.esmerge")); // of a run killed after its output had its name
    }
    assert!(used > 1, "{used}");
    place.refused(&["merge", "documents.yaml", "out", "--shard", "1/2"], &["several documents"]);
}
