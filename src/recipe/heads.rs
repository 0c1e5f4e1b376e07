//! `heads`: what becomes of the experts' heads.

use super::cursor::{Cursor, Mapping};
use super::{AdapterOut, Error};
use crate::method::head_refit::{Heads, LAM, Mode};

/// Reads `heads`, a word or a mapping; none where heads are not spoken of.
pub(super) fn read(top: &Mapping, adapter: Option<AdapterOut>) -> Result<Option<Heads>, Error> {
    let Some(c) = top.get("heads") else { return Ok(None) };
    if adapter.is_some() {
        return Err(c.error("`out: lora` writes no model that heads could be kept beside"));
    }
    let plain = |mode| Heads { mode, lam: LAM, own_only: false };
    if !c.is_map() {
        return Ok(Some(plain(mode(&c)?)));
    }
    let map = c.map(&["mode", "lam", "proxies"])?;
    let mut heads = plain(map.get("mode").map_or(Ok(Mode::Auto), |c| mode(&c))?);
    if let Some(c) = map.get("lam") {
        heads.lam = c.number()?;
        if heads.lam <= 0.0 {
            return Err(c.error("a number above 0 is expected"));
        }
    }
    if let Some(c) = map.get("proxies") {
        heads.own_only = c.choice(&[("all", false), ("own", true)])?;
    }
    Ok(Some(heads))
}

fn mode(c: &Cursor) -> Result<Mode, Error> {
    c.choice(&Mode::NAMES)
}
