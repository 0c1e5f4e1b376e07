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

/// An entry point that takes parameters `P`, buffers `B` and the overrides `O` of its shader. `W` is what the host must know of its
/// workgroup: the number of its threads, the [`Override`] that says it, or nothing.
pub(super) struct Entry<P, B, W, O> {
    shader: Shader,
    name: &'static str,
    storage: &'static [(u32, bool)],
    pub workgroup: W,
    takes: PhantomData<(P, B, O)>,
}

impl<P, B, W, O> Entry<P, B, W, O> {
    const fn new(shader: Shader, name: &'static str, storage: &'static [(u32, bool)], workgroup: W) -> Self {
        Entry { shader, name, storage, workgroup, takes: PhantomData }
    }

    /// The entry point over these buffers.
    pub fn on<'a>(&self, bindings: B) -> Bound<'a, P, O>
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

/// An entry point that takes parameters `P` and overrides `O`, over its buffers.
pub(super) struct Bound<'a, P, O> {
    pub shader: Shader,
    pub entry: &'static str,
    /// The numbers of the buffers, and whether they are written.
    pub storage: &'static [(u32, bool)],
    pub windows: Vec<Window<'a>>,
    takes: PhantomData<(P, O)>,
}

/// A constant of the name `N` and the type `T` that is set when a pipeline is made.
pub(super) struct Override<N, T> {
    name: &'static str,
    takes: PhantomData<(N, T)>,
}

impl<N, T> Clone for Override<N, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N, T> Copy for Override<N, T> {}

/// Of a shader that has such an override.
pub(super) trait Takes<N, T> {}

/// An override of a shader that has those of `O`, and what it is set to.
pub(super) struct Setting<O> {
    pub name: &'static str,
    pub value: f64,
    of: PhantomData<O>,
}

impl<N, T: Into<f64>> Override<N, T> {
    const fn new(name: &'static str) -> Self {
        Override { name, takes: PhantomData }
    }

    /// Set to a value, for a shader that has it.
    pub fn is<O: Takes<N, T>>(self, value: T) -> Setting<O> {
        Setting { name: self.name, value: value.into(), of: PhantomData }
    }
}
