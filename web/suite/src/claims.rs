//! Claims as `tests/common/claims.rs` declares them, each to be run on a device that is open.

use esmerge::backend::Result;
use esmerge::backend::gpu::{Config, Gpu};
use esmerge::kernels::{Checks, Products};
use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;

/// A claim about every operation of a backend.
pub struct Claim {
    pub name: &'static str,
    pub run: fn(&'static Gpu) -> Pin<Box<dyn Future<Output = Result<()>>>>,
}

/// The same as in the tests, but that the claims are given in a list.
macro_rules! claims {
    ($(async fn $name:ident($backend:ident) $body:block)*) => {
        $(async fn $name<B: esmerge::backend::Backend>($backend: &B) -> esmerge::backend::Result<()> $body)*

        pub fn claims() -> Vec<$crate::claims::Claim> {
            vec![$($crate::claims::Claim { name: stringify!($name), run: |gpu| Box::pin($name(gpu)) }),*]
        }
    };
}

/// Ways to open the adapter, as in `tests/common/devices.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// As a release build opens it.
    Unchecked,
    /// With WebGPU's default limits, and as hardware is: its products and eigenproblems, no subgroups and 16-bit floats, shaders
    /// that check their indices.
    Tiled,
}

impl Way {
    pub const ALL: [Way; 2] = [Way::Unchecked, Way::Tiled];

    fn config(self) -> Config {
        let config = Config { checks: Checks::Off, ..Config::default() };
        match self {
            Way::Unchecked => config,
            Way::Tiled => Config {
                limits: Some(wgpu::Limits::defaults()),
                checks: Checks::On,
                products: Some(Products::Tiled),
                largest_eigenproblem: Some(usize::MAX),
                subgroups: false,
                half_floats: false,
                ..config
            },
        }
    }

    /// The adapter, opened once.
    pub async fn open(self) -> &'static Gpu {
        thread_local! {
            static OPEN: RefCell<HashMap<Way, &'static Gpu>> = RefCell::default();
        }
        if let Some(gpu) = OPEN.with_borrow(|open| open.get(&self).copied()) {
            return gpu;
        }
        let gpu = Gpu::open_with(Some(""), &self.config()).await.unwrap_or_else(|error| panic!("{error}"));
        let gpu = Box::leak(Box::new(gpu));
        OPEN.with_borrow_mut(|open| open.insert(self, gpu));
        gpu
    }
}
