//! Fetching from the hub what the cache lacks of a model.

use super::Missing;
use super::cache;
use super::choice::choose;
use crate::checkpoint::shards_of;
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the hub is, where `HF_ENDPOINT` says nothing else.
const HUB: &str = "https://huggingface.co";

/// How often a file is tried; each try goes on where the one before ended.
const TRIES: u32 = 5;

/// How a download shows that it goes on.
pub trait FetchProgress {
    /// A file of this length is begun, or gone on with.
    fn file(&mut self, name: &str, bytes: u64);
    /// So many bytes have come.
    fn advance(&mut self, bytes: u64);
}

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{name} cannot be fetched from {endpoint}: {reason}")]
pub struct FetchError {
    name: String,
    endpoint: String,
    reason: String,
}

/// Fetches what is missing of a model, from `HF_ENDPOINT` (the hub if unset), with the token `HF_TOKEN` or the one beside the cache.
/// Files are named in the cache when their SHA is what the hub says.
pub fn fetch(missing: &Missing, progress: &mut dyn FetchProgress) -> Result<(), FetchError> {
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let wrong =
        |reason: String| FetchError { name: missing.name.to_string(), endpoint: endpoint.clone(), reason };
    if set("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false", "FALSE"].contains(&value.as_str())) {
        return Err(wrong("HF_HUB_OFFLINE is set".to_owned()));
    }
    let is_address = endpoint.starts_with("http://") || endpoint.starts_with("https://");
    if !is_address || endpoint.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong("HF_ENDPOINT is no address; https://HOST is expected".to_owned()));
    }
    let mut builder = ApiBuilder::from_cache(Cache::new(missing.cache.clone()))
        .with_endpoint(endpoint.clone())
        .with_progress(false)
        .with_user_agent("esmerge", env!("CARGO_PKG_VERSION"));
    if let Some(token) = set("HF_TOKEN") {
        builder = builder.with_token(Some(token.trim().to_owned()));
    }
    let (name, revision) = (missing.name.repository().to_owned(), missing.name.revision().to_owned());
    let api = builder.build().map_err(|e| wrong(told(&e)))?;
    let repository = api.repo(Repo::with_revision(name, RepoType::Model, revision));
    let info = repository.info().map_err(|e| wrong(told(&e)))?;
    let folder = cache::repository(&missing.cache, &missing.name);
    let fetching = Fetching {
        repository: &repository,
        blobs: folder.join("blobs"),
        snapshot: folder.join("snapshots").join(&info.sha),
    };
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    for file in choose(&files).map_err(&wrong)? {
        fetching.file(file, progress).map_err(&wrong)?;
        if file.ends_with(".safetensors.index.json") {
            let shards = shards_of(&fetching.snapshot.join(file)).map_err(|e| wrong(e.to_string()))?;
            for shard in shards {
                if !files.contains(&shard) || shard.contains('/') {
                    return Err(wrong(format!("its index names the shard {shard}, which it does not hold")));
                }
                fetching.file(&shard, progress).map_err(&wrong)?;
            }
        }
    }
    Ok(())
}

struct Fetching<'a> {
    repository: &'a ApiRepo,
    blobs: PathBuf,
    snapshot: PathBuf,
}

impl Fetching<'_> {
    /// Fetches a file that is not there.
    fn file(&self, name: &str, progress: &mut dyn FetchProgress) -> Result<(), String> {
        let place = self.snapshot.join(name);
        if place.exists() {
            return Ok(());
        }
        let _ = fs::remove_file(&place); // a link to a blob that is gone
        let mut tries = 0;
        let path = loop {
            tries += 1;
            match self.repository.download_with_progress(name, Shown(progress)) {
                Ok(path) => break path,
                Err(error) if tries < TRIES && is_passing(&error) => {
                    std::thread::sleep(Duration::from_millis(200 << tries));
                }
                // what is there of it is all, or more than all; it is taken again
                Err(error) if tries < TRIES && is_over(&error) => {
                    self.forget_parts().map_err(|e| e.to_string())?
                }
                Err(error) => return Err(format!("{name}: {}", told(&error))),
            }
        };
        if path != place {
            return Err(format!(
                "{name} is of another commit than the files before it, because the model has just changed; run this again"
            ));
        }
        self.check(name, &path)
    }

    /// Holds a file against the name of its blob: SHA-256 of large ones, git's SHA-1 of others.
    fn check(&self, name: &str, path: &Path) -> Result<(), String> {
        let cannot = |e: io::Error| format!("{name} cannot be read: {e}");
        let blob = fs::canonicalize(path).map_err(cannot)?;
        let wanted = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let found = match wanted.len() {
            64 => hash::<Sha256>(&blob, None),
            40 => hash::<Sha1>(&blob, Some(fs::metadata(&blob).map_err(cannot)?.len())),
            _ => return Ok(()), // not a name by contents
        };
        let found = found.map_err(cannot)?;
        if found == wanted {
            return Ok(());
        }
        fs::remove_file(path).and_then(|()| fs::remove_file(&blob).or(Ok(()))).map_err(cannot)?;
        Err(format!(
            "{name} came with the hash {found}, but {wanted} is the hub's; it was removed, so run this again"
        ))
    }

    fn forget_parts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.blobs)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "part") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// A hash in hexadecimal; of git's blobs, which count their length in.
fn hash<D: Digest>(path: &Path, git: Option<u64>) -> io::Result<String> {
    let mut digest = D::new();
    if let Some(length) = git {
        digest.update(format!("blob {length}\0"));
    }
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => digest.update(&piece[..n]),
        }
    }
}

struct Shown<'p>(&'p mut dyn FetchProgress);

impl Progress for Shown<'_> {
    fn init(&mut self, size: usize, name: &str) {
        self.0.file(name, size as u64);
    }

    fn update(&mut self, bytes: usize) {
        self.0.advance(bytes as u64);
    }

    fn finish(&mut self) {}
}

/// A variable of the environment that is set to something.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The status that the hub has answered with.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match &**error {
            ureq::Error::Status(status, _) => Some(*status),
            ureq::Error::Transport(_) => None,
        },
        _ => None,
    }
}

/// Errors of this machine's disk, which waiting does not mend.
const ON_DISK: [io::ErrorKind; 5] = [
    io::ErrorKind::StorageFull,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::NotFound,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::AlreadyExists,
];

/// Whether it may go better the next time.
fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::IoError(error) => !ON_DISK.contains(&error.kind()),
        ApiError::RequestError(_) => status(error).is_none_or(|status| status >= 500 || status == 429),
        _ => false,
    }
}

/// Whether the part that is there reaches past the end.
fn is_over(error: &ApiError) -> bool {
    matches!(error, ApiError::InvalidResume) || status(error) == Some(416)
}

/// What an error means, and what to do.
fn told(error: &ApiError) -> String {
    match status(error) {
        Some(401 | 403) => "access is refused (for a model that does not exist too): set HF_TOKEN to a token that may read it, and accept its terms \
                            on its page where it has some"
            .to_owned(),
        Some(404) => "there is no such model, revision or file".to_owned(),
        Some(status) => format!("the answer was HTTP status {status}"),
        None => error.to_string(),
    }
}
