//! A server on this machine that answers as the Hugging Face hub does, as far as fetching a model needs it.

#![allow(dead_code)] // each test binary uses some of these

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Its one commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files of this size and more are kept elsewhere, under their SHA-256.
const LARGE: usize = 1 << 10;

/// What it holds, and what it was asked.
#[derive(Default)]
pub struct Contents {
    /// `ORG/NAME/FILE`
    pub files: BTreeMap<String, Vec<u8>>,
    /// A token without which nothing is given.
    pub token: Option<String>,
    /// Answers with bodies are cut after so many bytes, as often as this.
    pub cuts: usize,
    /// Files that come with a wrong byte.
    pub spoilt: Option<String>,
    /// Paths and ranges of what was asked for.
    pub asked: Vec<String>,
}

/// A server that runs as long as the test.
pub struct Hub {
    pub address: String,
    pub contents: Arc<Mutex<Contents>>,
}

impl Hub {
    pub fn start() -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let contents = Arc::new(Mutex::new(Contents::default()));
        let shared = Arc::clone(&contents);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(answer(stream, &shared)));
            }
        });
        Hub { address, contents }
    }

    /// Adds all files of a folder as a model.
    pub fn model(&self, name: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().into_string().unwrap();
            self.file(&format!("{name}/{file}"), &std::fs::read(entry.path()).unwrap());
        }
    }

    pub fn file(&self, path: &str, bytes: &[u8]) {
        self.contents.lock().unwrap().files.insert(path.to_owned(), bytes.to_vec());
    }

    /// How often bodies were asked for, by the end of the path.
    pub fn asked(&self, ending: &str) -> Vec<String> {
        let contents = self.contents.lock().unwrap();
        contents.asked.iter().filter(|asked| asked.contains(ending)).cloned().collect()
    }
}

/// One request a connection.
fn answer(mut stream: TcpStream, contents: &Mutex<Contents>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let range = headers.get("range").cloned().unwrap_or_default();
    let mut contents = contents.lock().unwrap();
    contents.asked.push(format!("{path} {range}"));
    let granted = contents.token.as_ref().is_none_or(|token| {
        path.starts_with("/large/") || headers.get("authorization") == Some(&format!("Bearer {token}"))
    });
    if !granted {
        return status(&mut stream, "401 Unauthorized");
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let (model, _) = rest.split_once("/revision/").unwrap_or((rest, ""));
        let prefix = format!("{model}/");
        let names = contents.files.keys().filter_map(|name| name.strip_prefix(&prefix));
        let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        if siblings.is_empty() {
            return status(&mut stream, "404 Not Found");
        }
        let body = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let large = path.strip_prefix("/large/").map(str::to_owned);
    let name = large.clone().unwrap_or_else(|| path.trim_start_matches('/').replace("/resolve/main/", "/"));
    let Some(bytes) = contents.files.get(&name).cloned() else { return status(&mut stream, "404 Not Found") };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if large.is_none() && bytes.len() >= LARGE {
        let etag = hex(&Sha256::digest(&bytes));
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://{}/large/{name}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{etag}\"\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n",
            headers.get("host").cloned().unwrap_or_default()
        );
    }
    let (start, end) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    if start >= end {
        return status(&mut stream, "416 Range Not Satisfiable");
    }
    let mut body = bytes[start..end].to_vec();
    if contents.spoilt.as_ref() == Some(&name) {
        body[0] ^= 1;
    }
    let cut = contents.cuts > 0 && body.len() >= LARGE && name.ends_with("model.safetensors");
    contents.cuts -= usize::from(cut);
    drop(contents);
    let mut git = Sha1::new();
    git.update(format!("blob {}\0", bytes.len()));
    git.update(&bytes);
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nX-Repo-Commit: {COMMIT}\r\n\
         ETag: \"{}\"\r\nConnection: close\r\n\r\n",
        body.len(),
        end - 1,
        bytes.len(),
        hex(&git.finalize())
    )?;
    stream.write_all(&body[..if cut { LARGE / 2 } else { body.len() }])
}

fn status(stream: &mut TcpStream, status: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}
