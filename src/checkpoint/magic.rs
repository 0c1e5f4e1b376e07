//! What a file is that is no safetensors file, by its first bytes.

/// How many bytes tell.
pub(super) const BYTES: usize = 32;

/// First bytes, and what such a file is and how to come by weights that can be read.
const KINDS: [(&[u8], &str); 9] = [
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the weights: run `git lfs pull` in the model's repository, or download the file again",
    ),
    (
        b"GGUF",
        "it is a GGUF file, which is read as a model alone: by its path, or as the only weights of a folder",
    ),
    (b"PK\x03\x04", PICKLE),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x89HDF", "it is an HDF5 file (Keras): load the model in PyTorch and `save_pretrained`"),
    (b"<!", WEB_PAGE),
    (b"<h", WEB_PAGE),
];
const PICKLE: &str = "it is a pickle of PyTorch, which can run code when it is read: load the model in PyTorch and save it as \
                      safetensors (`save_pretrained`)";
const WEB_PAGE: &str = "it is a web page, probably of a download that was refused: download the file again";

/// What a file is that begins so; `None` if that is not known.
pub(super) fn kind(start: &[u8]) -> Option<&'static str> {
    KINDS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| *what)
}
