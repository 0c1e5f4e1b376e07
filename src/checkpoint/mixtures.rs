//! Mixtures of experts: files keep a matrix an expert or those of all experts as one tensor, the gate and what it gates apart or one
//! below the other, under names of today or of an earlier time. A model is seen here as another one's files have it.

use super::model::View;
use super::slices::slice_of;
use super::{Checkpoint, Error, TensorMeta};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// The matrices of an expert in files: the way in, its gate first, and the way out.
pub struct Spelling {
    /// What decides how much of each value passes.
    pub gate: &'static str,
    /// The values.
    pub up: &'static str,
    /// The way out.
    pub down: &'static str,
}

/// How they are called.
pub const SPELLINGS: [Spelling; 2] = [
    Spelling { gate: "gate_proj", up: "up_proj", down: "down_proj" },
    Spelling { gate: "w1", up: "w3", down: "w2" },
];

/// Gate and `up` as one matrix.
const GATE_UP: &str = "gate_up_proj";

/// What older files call the module that holds gate and experts, and what it is called in a model.
pub const RENAMED: (&str, &str) = (".block_sparse_moe", ".mlp");

/// What a matrix of an expert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Piece {
    Gate,
    Up,
    GateUp,
    Down,
}

/// A tensor of a mixture, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A matrix of an expert, by the module that holds the experts.
    Of { holder: String, expert: usize, piece: Piece },
    /// Beside the experts: the router's gate.
    Beside(String),
}

impl Key {
    fn new(name: &str) -> Option<Key> {
        let (from, to) = RENAMED;
        let today = |name: &str| name.replace(&format!("{from}."), &format!("{to}."));
        let Some((holder, rest)) = name.split_once(".experts.") else {
            return name
                .contains(&format!("{to}.gate."))
                .then(|| Key::Beside(name.to_owned()))
                .or_else(|| name.contains(&format!("{from}.")).then(|| Key::Beside(today(name))));
        };
        let (expert, module) = match slice_of(rest) {
            Some((module, expert)) => (expert, module.strip_suffix(".weight").unwrap_or(module)),
            None => {
                let (expert, module) = rest.split_once('.')?;
                (expert.parse().ok()?, module.strip_suffix(".weight")?)
            }
        };
        let is = |part: fn(&Spelling) -> &str| SPELLINGS.iter().any(|spelling| part(spelling) == module);
        let piece = match () {
            () if module == GATE_UP => Piece::GateUp,
            () if is(|s| s.gate) => Piece::Gate,
            () if is(|s| s.up) => Piece::Up,
            () if is(|s| s.down) => Piece::Down,
            () => return None,
        };
        let holder = today(&format!("{holder}.")).trim_end_matches('.').to_owned();
        Some(Key::Of { holder, expert, piece })
    }

    /// Another matrix of the same expert.
    fn beside(&self, piece: Piece) -> Option<Key> {
        match self {
            Key::Of { holder, expert, .. } => {
                Some(Key::Of { holder: holder.clone(), expert: *expert, piece })
            }
            Key::Beside(_) => None,
        }
    }
}

/// A model as another one's files have it.
pub struct Regrouped {
    /// The model.
    pub model: Checkpoint,
    /// Its tensors that are called or cut otherwise in its own files: the ones that hold their values there.
    pub parts: IndexMap<String, Vec<String>>,
}

/// The experts of `own` as the files of `like` have theirs, as far as one is the other by names and sizes; none where that changes
/// nothing.
pub fn regrouped(like: &Checkpoint, own: &Checkpoint) -> Result<Option<Regrouped>, Error> {
    let keys = |model: &'_ Checkpoint, other: &Checkpoint| -> HashMap<Key, String> {
        let lacking = model.names().filter(|name| other.get(name).is_none());
        lacking.filter_map(|name| Some((Key::new(name)?, name.to_owned()))).collect()
    };
    let (of_like, of_own) = (keys(like, own), keys(own, like));
    let matrix = |model: &Checkpoint, keys: &HashMap<Key, String>, key: Option<Key>| {
        model.get(keys.get(&key?)?).and_then(TensorMeta::matrix)
    };
    let mut views = Vec::new();
    for name in like.names() {
        let Some((key, name)) = Key::new(name).and_then(|key| of_like.get_key_value(&key)) else { continue };
        if let Some(same) = of_own.get(key) {
            views.push((name.clone(), View::Whole(same)));
            continue;
        }
        let Key::Of { piece, .. } = key else { continue };
        // the way in, where one of the two models has it as one matrix and the other as two
        let (whole, halves) = match piece {
            Piece::GateUp => ((like, &of_like), (own, &of_own)),
            Piece::Gate | Piece::Up => ((own, &of_own), (like, &of_like)),
            Piece::Down => continue,
        };
        let size = |(model, keys): (&Checkpoint, &HashMap<Key, String>), piece| {
            matrix(model, keys, key.beside(piece))
        };
        let (Some((rows, cols)), Some(gate), Some(up)) =
            (size(whole, Piece::GateUp), size(halves, Piece::Gate), size(halves, Piece::Up))
        else {
            continue;
        };
        if (gate.1, up.1) != (cols, cols) || gate.0 + up.0 != rows {
            continue;
        }
        let named = |piece| key.beside(piece).and_then(|key| of_own.get(&key));
        views.extend(match piece {
            Piece::GateUp => named(Piece::Gate)
                .zip(named(Piece::Up))
                .map(|(gate, up)| (name.clone(), View::Below([gate, up]))),
            Piece::Gate => named(Piece::GateUp).map(|of| (name.clone(), View::Rows(of, 0..gate.0))),
            _ => named(Piece::GateUp).map(|of| (name.clone(), View::Rows(of, gate.0..rows))),
        });
    }
    if views.is_empty() {
        return Ok(None);
    }
    let parts = views.iter().map(|(name, view)| {
        let of: Vec<&str> = view.of();
        (name.clone(), of.into_iter().map(str::to_owned).collect::<Vec<_>>())
    });
    let parts: IndexMap<String, Vec<String>> = parts.collect();
    let gone: HashSet<&str> = views.iter().flat_map(|(_, view)| view.of()).collect();
    let model = own.seen_as(&gone, &views)?;
    drop((gone, views));
    Ok(Some(Regrouped { model, parts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_the_same_by_all_its_names() {
        let key = |name: &str| Key::new(name).unwrap();
        let gate = key("model.layers.0.mlp.experts.3.gate_proj.weight");
        assert_eq!(gate, key("model.layers.0.block_sparse_moe.experts.3.w1.weight"));
        assert_eq!(gate, key("model.layers.0.mlp.experts.gate_proj[3]"));
        assert_eq!(gate.beside(Piece::GateUp), Some(key("model.layers.0.mlp.experts.gate_up_proj[3]")));
        assert_eq!(
            gate.beside(Piece::Down),
            Some(key("model.layers.0.block_sparse_moe.experts.3.w2.weight"))
        );
        assert_eq!(key("model.layers.0.block_sparse_moe.gate.weight"), key("model.layers.0.mlp.gate.weight"));
        for other in
            ["model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.experts.3.bias", "lm_head.weight"]
        {
            assert_eq!(Key::new(other), None, "{other}");
        }
    }
}
