//! GGUF files, as llama.cpp and its kin read them: the header, and the names that Hugging Face's libraries give the same tensors.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::codes::{Codes, Format, Made, Rows};
use super::extent::{Source, open as open_file};
use super::{Error, Stored, TensorFile, TensorMeta};
use crate::backend::Dtype;
use crate::files::Identity;
use crate::host::fs::File;
use indexmap::IndexMap;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

/// How such a file begins.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Bytes of a key or of a name.
const MAX_NAME: u64 = 1 << 16;

/// Tensors, keys and dimensions at most: past them a header is damaged.
const MAX_COUNT: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// Opens a file, its tensors under Hugging Face's names.
pub(super) fn open(path: &Path) -> Result<TensorFile, Error> {
    let file = open_file(path)?;
    let identity = Identity::of(&file).map_err(Error::io("read", path))?;
    let length = identity.length();
    let bad = |reason: String| Error::BadGguf { path: path.to_path_buf(), reason };
    let header = Header::read(&file, length).map_err(|error| match error {
        Trouble::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            bad("it ends within its header; download it again".to_owned())
        }
        Trouble::Io(source) => Error::io("read", path)(source),
        Trouble::Format(reason) => bad(reason),
    })?;
    let family = Family::of(&header).map_err(bad)?;
    let mut tensors: IndexMap<String, TensorMeta> = IndexMap::new();
    let mut codes = HashMap::new();
    for tensor in &header.tensors {
        let (meta, coded) = tensor.located(&header, length).map_err(bad)?;
        let Some(name) = family.name(&tensor.name).map_err(bad)? else { continue };
        let coded = family.adjusted(&tensor.name, &meta, coded).map_err(bad)?;
        if tensors.insert(name.clone(), meta).is_some() {
            return Err(bad(format!("it has the tensor `{}` twice; convert the model again", tensor.name)));
        }
        codes.insert(name, Arc::new(Made::Of(Codes::Rows(coded))));
    }
    let source = Arc::new(Source::closed(path, identity));
    Ok(TensorFile::of_codes(source, length, header.bytes, tensors, codes))
}

enum Trouble {
    Io(io::Error),
    Format(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Io(error)
    }
}

fn wrong<T>(reason: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Format(reason.into()))
}

/// What a header says, as far as it matters here.
struct Header {
    texts: BTreeMap<String, String>,
    numbers: BTreeMap<String, u64>,
    tensors: Vec<Tensor>,
    /// Where the data begin.
    data: u64,
    /// Of the header itself.
    bytes: u64,
}

struct Tensor {
    name: String,
    /// Rows first, as a matrix is written down; the file has them the other way round.
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Header {
    fn read(file: &File, length: u64) -> Result<Header, Trouble> {
        let mut input = Input { reader: BufReader::new(file), length };
        let mut magic = [0; 4];
        input.reader.read_exact(&mut magic)?;
        let version = input.u32()?;
        if &magic != MAGIC || !(2..=3).contains(&version) {
            return wrong(format!("its version is {version}; 2 and 3 are read"));
        }
        let (tensors, keys) = (input.count("tensors")?, input.count("keys")?);
        let (mut texts, mut numbers) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..keys {
            let key = input.text()?;
            let kind = input.u32()?;
            match kind {
                TEXT if key == "general.architecture" => drop(texts.insert(key, input.text()?)),
                0..=7 | 10..=12 => drop(numbers.insert(key, input.number(kind)?)),
                _ => input.skip(kind, true)?,
            }
        }
        let mut found = Vec::new();
        for _ in 0..tensors {
            let name = input.text()?;
            let dimensions = input.u32()?;
            if dimensions > MAX_DIMENSIONS {
                return wrong(format!("the tensor `{name}` has {dimensions} dimensions"));
            }
            let mut shape = (0..dimensions).map(|_| input.u64()).collect::<Result<Vec<_>, _>>()?;
            shape.reverse();
            found.push(Tensor { name, shape, kind: input.u32()?, offset: input.u64()? });
        }
        let bytes = input.reader.stream_position()?;
        let alignment = numbers.get("general.alignment").copied().unwrap_or(32);
        if !(1..=1 << 20).contains(&alignment) {
            return wrong(format!("its alignment is {alignment} bytes"));
        }
        Ok(Header { texts, numbers, tensors: found, data: bytes.next_multiple_of(alignment), bytes })
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.numbers.get(key).copied()
    }
}

/// Types of values.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

struct Input<'a> {
    reader: BufReader<&'a File>,
    length: u64,
}

impl Input<'_> {
    fn u32(&mut self) -> Result<u32, Trouble> {
        let mut bytes = [0; 4];
        self.reader.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, Trouble> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn count(&mut self, what: &str) -> Result<u64, Trouble> {
        let count = self.u64()?;
        if count > MAX_COUNT {
            return wrong(format!("its header announces {count} {what}"));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, Trouble> {
        let bytes = self.u64()?;
        if bytes > MAX_NAME {
            return wrong(format!("a name in its header takes {bytes} bytes"));
        }
        let mut text = vec![0; bytes as usize];
        self.reader.read_exact(&mut text)?;
        String::from_utf8(text).or_else(|_| wrong("a name in its header is not UTF-8"))
    }

    /// An integer, or the bits of a float, which no one asks for.
    fn number(&mut self, kind: u32) -> Result<u64, Trouble> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes[..width(kind).unwrap_or(8) as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Goes past a value.
    fn skip(&mut self, kind: u32, outermost: bool) -> Result<(), Trouble> {
        match (kind, width(kind)) {
            (_, Some(bytes)) => self.forward(bytes),
            (TEXT, _) => {
                let bytes = self.u64()?;
                self.forward(bytes)
            }
            (ARRAY, _) if outermost => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if let Some(bytes) = width(kind) {
                    return self.forward(count.saturating_mul(bytes));
                }
                if count > self.length {
                    return wrong("an array in its header is longer than the file");
                }
                (0..count).try_for_each(|_| self.skip(kind, false))
            }
            _ => wrong(format!("its header has a value of an unknown type ({kind})")),
        }
    }

    fn forward(&mut self, bytes: u64) -> Result<(), Trouble> {
        let at = self.reader.stream_position()?;
        match i64::try_from(bytes) {
            Ok(step) if at.saturating_add(bytes) <= self.length => Ok(self.reader.seek_relative(step)?),
            _ => wrong("a value in its header is longer than the file"),
        }
    }
}

/// Bytes of a number of a type.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Tensor {
    /// Where its values are, as floats, and how they are coded.
    fn located(&self, header: &Header, length: u64) -> Result<(TensorMeta, Rows), String> {
        let format = match self.kind {
            0 => Format::Plain(Dtype::F32),
            1 => Format::Plain(Dtype::F16),
            2 => Format::Q4_0,
            8 => Format::Q8_0,
            12 => Format::Q4K,
            14 => Format::Q6K,
            30 => Format::Plain(Dtype::Bf16),
            other => {
                return Err(format!(
                    "the tensor `{}` is of the type {}, which is not read; F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K are",
                    self.name,
                    named(other)
                ));
            }
        };
        let shape: Option<Vec<usize>> = self.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &size| n.checked_mul(size)));
        let (Some(shape), Some(elements)) =
            (shape, elements.filter(|&n| n as u64 <= length.saturating_mul(8)))
        else {
            return Err(format!(
                "the tensor `{}` of shape {:?} is larger than the file",
                self.name, self.shape
            ));
        };
        let cols = shape.last().copied().unwrap_or(1).max(1);
        if !cols.is_multiple_of(format.unit().0) {
            return Err(format!(
                "rows of `{}` are {cols} values, no whole blocks of {}",
                self.name,
                format.unit().0
            ));
        }
        let offset = header.data.checked_add(self.offset);
        let end = offset.and_then(|at| at.checked_add(format.bytes(elements)));
        let (Some(offset), Some(_)) = (offset, end.filter(|&end| end <= length)) else {
            return Err(format!("the tensor `{}` lies beyond the file's end; download it again", self.name));
        };
        let meta = TensorMeta { dtype: Stored::F32, shape, offset, bytes: 4 * elements as u64 };
        Ok((meta, Rows { format, cols, scales: None, head_rows: None, plus: 0.0 }))
    }
}

/// A type by its name in the format.
fn named(kind: u32) -> String {
    let known = [
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (13, "Q5_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (39, "MXFP4"),
    ];
    let name = known.iter().find(|(number, _)| *number == kind).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("number {kind}"))
}

/// A kind of model whose tensors' names are known.
struct Family {
    gemma: bool,
    /// Norms before and after the halves of a block.
    sandwiched: bool,
    fused: bool,
    /// Query heads and key heads, where the rows of a head's halves alternate.
    heads: Option<[u64; 2]>,
}

impl Family {
    fn of(header: &Header) -> Result<Family, String> {
        let name = header.texts.get("general.architecture").map_or("", String::as_str);
        let plain = Family { gemma: false, sandwiched: false, fused: false, heads: None };
        match name {
            "llama" => {
                let heads = header.number("llama.attention.head_count").filter(|&n| n > 0);
                let heads = heads.ok_or("it does not say how many heads the model has")?;
                let keys = header.number("llama.attention.head_count_kv").filter(|&n| n > 0).unwrap_or(heads);
                Ok(Family { heads: Some([heads, keys]), ..plain })
            }
            "qwen2" | "qwen3" => Ok(plain),
            "gemma" => Ok(Family { gemma: true, ..plain }),
            "gemma2" | "gemma3" => Ok(Family { gemma: true, sandwiched: true, ..plain }),
            "phi3" => Ok(Family { fused: true, ..plain }),
            "" => Err("it does not name its architecture".to_owned()),
            other => Err(format!(
                "the names of tensors of the architecture `{other}` are not known; those of llama (Mistral too), qwen2, qwen3, \
                 gemma, gemma2, gemma3 and phi3 are"
            )),
        }
    }

    /// Hugging Face's name of a tensor; none for what is computed from the configuration.
    fn name(&self, name: &str) -> Result<Option<String>, String> {
        let outside = match name {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight" => {
                return Ok(None);
            }
            _ => None,
        };
        if let Some(outside) = outside {
            return Ok(Some(outside.to_owned()));
        }
        let unknown =
            || format!("the tensor `{name}` has no name in Hugging Face's models of this architecture");
        let (index, rest) =
            name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let (part, kind) = rest.rsplit_once('.').ok_or_else(unknown)?;
        let is_index = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
        let part = match part {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_qkv" if self.fused => "self_attn.qkv_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "post_attention_norm" if self.sandwiched => "post_attention_layernorm",
            "post_ffw_norm" if self.sandwiched => "post_feedforward_layernorm",
            "ffn_norm" if self.sandwiched => "pre_feedforward_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" if self.fused => "mlp.gate_up_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "attn_rot_embd" => return Ok(None),
            _ => return Err(unknown()),
        };
        if !is_index || !["weight", "bias"].contains(&kind) {
            return Err(unknown());
        }
        Ok(Some(format!("model.layers.{index}.{part}.{kind}")))
    }

    /// What the conversion to GGUF changed is undone: the order of the rows of queries and keys of Llama, and Gemma's norms, which
    /// are `1 + w` there.
    fn adjusted(&self, name: &str, meta: &TensorMeta, codes: Rows) -> Result<Rows, String> {
        if self.gemma && name.ends_with("norm.weight") {
            return Ok(Rows { plus: -1.0, ..codes });
        }
        let Some([heads, key_heads]) = self.heads else { return Ok(codes) };
        let heads = match name.rsplit('.').nth(1) {
            Some("attn_q") => heads,
            Some("attn_k") => key_heads,
            _ => return Ok(codes),
        };
        // a bias is a column
        let cols = if meta.shape.len() == 1 { 1 } else { codes.cols };
        let rows = meta.elements() as u64 / cols as u64;
        if !rows.is_multiple_of(2 * heads) {
            return Err(format!(
                "the {rows} rows of `{name}` do not divide into {heads} heads of two halves"
            ));
        }
        Ok(Rows { head_rows: Some((rows / heads) as usize), cols, ..codes })
    }
}
