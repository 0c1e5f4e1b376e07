//! The header of a safetensors file: JSON that maps tensor names to type, shape and place, read straight into what is kept of it.

use super::TensorMeta;
use indexmap::IndexMap;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt::{Formatter, Result as Written};

/// The key of the entry that is no tensor.
const METADATA: &str = "__metadata__";

/// What a header says.
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    /// In the order of their data.
    pub tensors: IndexMap<String, TensorMeta>,
}

/// Reads a header whose data start at byte `start`.
pub(super) fn parse(header: &[u8], start: u64) -> Result<Header, String> {
    if header.first() != Some(&b'{') {
        return Err("its header does not begin with `{`, as the format asks".to_owned());
    }
    let entries: Entries = serde_json::from_slice(header)
        .map_err(|e| format!("its header is not a JSON object of tensors ({e})"))?;
    let Entries { metadata, mut infos } = entries;
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut tensors = IndexMap::with_capacity(infos.len());
    let mut end = 0;
    for (name, info) in infos {
        if tensors.contains_key(&name) {
            return Err(format!("its header names the tensor `{name}` twice; export the file again"));
        }
        let meta = locate(&name, info, start, end)?;
        end = meta.offset + meta.bytes - start;
        tensors.insert(name, meta);
    }
    Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
}

/// One entry, whose data must begin where the previous tensor's end and be as long as its shape says.
fn locate(name: &str, info: TensorInfo, start: u64, previous_end: u64) -> Result<TensorMeta, String> {
    let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    if from != previous_end || to < from {
        return Err(format!(
            "the data of tensor `{name}` should begin at byte {previous_end} of the data but is given as {from}..{to}: \
             tensors overlap or leave a gap; export the file again"
        ));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &size| bits.checked_mul(size));
    if bits != usize::try_from(to - from).ok().and_then(|bytes| bytes.checked_mul(8)) {
        return Err(format!(
            "tensor `{name}` of shape {:?} and type {} does not take the {} bytes its header gives it",
            info.shape,
            info.dtype,
            to - from
        ));
    }
    let offset = start.checked_add(from).filter(|offset| offset.checked_add(to - from).is_some());
    let offset = offset.ok_or_else(|| format!("the data offsets of tensor `{name}` are beyond any file"))?;
    Ok(TensorMeta { dtype: info.dtype, shape: info.shape, offset, bytes: to - from })
}

/// The entries as they stand there. Nothing is kept twice on the way, for a header may have 100 MB.
#[derive(Default)]
struct Entries {
    metadata: Option<BTreeMap<String, String>>,
    infos: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;

            fn expecting(&self, f: &mut Formatter<'_>) -> Written {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        let found = map.next_value::<Unique>().map_err(|e| {
                            A::Error::custom(format!(
                                "`{METADATA}` should map strings to strings, each once: {e}"
                            ))
                        })?;
                        if entries.metadata.replace(found.0.into_iter().collect()).is_some() {
                            return Err(A::Error::custom(format!("`{METADATA}` is there twice")));
                        }
                    } else {
                        let info = map
                            .next_value()
                            .map_err(|e| A::Error::custom(format!("the entry of tensor `{name}`: {e}")))?;
                        entries.infos.push((name, info));
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// Strings by keys of which none is there twice.
pub(super) struct Unique(pub IndexMap<String, String>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Unique;

            fn expecting(&self, f: &mut Formatter<'_>) -> Written {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut strings = IndexMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if strings.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key `{key}` is there twice")));
                    }
                    strings.insert(key, value);
                }
                Ok(Unique(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(header: &str) -> String {
        parse(header.as_bytes(), 0).err().unwrap()
    }

    #[test]
    fn what_is_there_twice_is_refused_by_name() {
        let tensor = r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#;
        assert!(refused(&format!(r#"{{"a": {tensor}, "a": {tensor}}}"#)).contains("`a` twice"));
        let metadata = r#""__metadata__": {"x": "1"}"#;
        assert!(refused(&format!("{{{metadata}, {metadata}}}")).contains("`__metadata__` is there twice"));
        let twice = refused(r#"{"__metadata__": {"key": "1", "key": "1"}}"#);
        assert!(twice.contains("`key` is there twice"), "{twice}");
        assert!(refused(r#"{"__metadata__": {"key": 1}}"#).contains("`__metadata__`"));
        let twice = r#"{"a": {"dtype": "F32", "dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}"#;
        assert!(refused(twice).contains("`a`"));
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let header = r#"{"b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
            "__metadata__": {"format": "pt"}, "a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}"#;
        let Header { metadata, tensors } = parse(header.as_bytes(), 100).unwrap();
        assert_eq!(metadata["format"], "pt");
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((tensors["b"].offset, tensors["b"].bytes), (101, 2));
    }
}
