//! The shaders, as `build.rs` found them: a module for each, with the struct of its parameters, its entry points, the structs of
//! buffers that those bind, its constants and overrides.
#![allow(dead_code)] // not every constant of a shader matters to its host

use super::recorder::{Window, WindowMut};
use std::marker::PhantomData;

include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// One WGSL file.
#[derive(Clone, Copy)]
pub(crate) struct Shader {
    pub name: &'static str,
    pub source: &'static str,
}

/// An entry point that takes parameters `P` and buffers `B`. `W` is what the host must know of its workgroup: the number of its threads,
/// the [`Override`] that says it, or nothing.
pub(super) struct Entry<P, B, W = u32> {
    shader: Shader,
    name: &'static str,
    storage: &'static [(u32, bool)],
    pub workgroup: W,
    takes: PhantomData<(P, B)>,
}

impl<P, B, W> Entry<P, B, W> {
    const fn new(shader: Shader, name: &'static str, storage: &'static [(u32, bool)], workgroup: W) -> Self {
        Entry { shader, name, storage, workgroup, takes: PhantomData }
    }

    /// The entry point over these buffers.
    pub fn on<'a>(&self, bindings: B) -> Bound<'a, P>
    where
        B: Bind<'a>,
    {
        let Entry { shader, name, storage, .. } = *self;
        Bound { shader, entry: name, storage, windows: bindings.windows(), takes: PhantomData }
    }
}

/// The buffers of an entry point, in the order of their numbers.
pub(super) trait Bind<'a> {
    fn windows(self) -> Vec<Window<'a>>;
}

/// An entry point that takes parameters `P`, over its buffers.
pub(super) struct Bound<'a, P> {
    pub shader: Shader,
    pub entry: &'static str,
    /// The numbers of the buffers, and whether they are written.
    pub storage: &'static [(u32, bool)],
    pub windows: Vec<Window<'a>>,
    takes: PhantomData<P>,
}

/// A constant that is set when a pipeline is made.
#[derive(Clone, Copy)]
pub(super) struct Override<T> {
    name: &'static str,
    takes: PhantomData<T>,
}

impl<T: Into<f64>> Override<T> {
    const fn new(name: &'static str) -> Self {
        Override { name, takes: PhantomData }
    }

    /// Name and value, as a pipeline is told them.
    pub fn is(self, value: T) -> (&'static str, f64) {
        (self.name, value.into())
    }
}
