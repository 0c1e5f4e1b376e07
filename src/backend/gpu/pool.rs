//! Device memory, reused by size.

use super::context::Context;
use super::fault::FaultKind;
use super::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Buffers that no tensor uses, by size. Commands run in the order they are queued, so a buffer may be reused as soon as
/// its tensor is dropped, even while earlier commands that read it are still to run.
pub(super) struct Pool {
    context: Rc<Context>,
    idle: RefCell<HashMap<u64, Vec<wgpu::Buffer>>>,
    idle_bytes: Cell<u64>,
    allocated: Cell<u64>,
    most: Cell<u64>,
}

/// Idle memory that is kept whatever is in use.
const SPARE: u64 = 256 << 20;

/// A buffer that returns to its pool when dropped.
pub(super) struct Memory {
    pub buffer: wgpu::Buffer,
    pool: Rc<Pool>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pool.take_back(&self.buffer);
    }
}

impl Pool {
    pub fn new(context: Rc<Context>) -> Self {
        Pool {
            context,
            idle: RefCell::default(),
            idle_bytes: Cell::new(0),
            allocated: Cell::new(0),
            most: Cell::new(0),
        }
    }

    /// Memory of at least `bytes`, holding anything.
    pub fn allocate(self: &Rc<Self>, what: &'static str, bytes: u64) -> Result<Memory> {
        self.context.check()?;
        if self.context.faults.strikes(FaultKind::Refused) {
            return Err(Error::OutOfMemory { what, bytes });
        }
        let limit = self.context.kernels.limits().max_buffer_size;
        if bytes > limit {
            return Err(Error::TooLarge { what, bytes, limit });
        }
        let size = size_class(bytes).min(limit / 4 * 4);
        let buffer = match self.reuse(size) {
            Some(buffer) => buffer,
            None => self
                .create(size)
                .or_else(|| self.create_after_trim(size))
                .ok_or(Error::OutOfMemory { what, bytes })?,
        };
        Ok(Memory { buffer, pool: Rc::clone(self) })
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.get()
    }

    /// The most that was allocated at once.
    pub fn peak_bytes(&self) -> u64 {
        self.most.get()
    }

    /// Gives idle buffers back to the driver, which frees each when the last command that uses it is done.
    pub fn trim(&self) {
        self.idle.borrow_mut().clear();
        self.allocated.set(self.allocated.get() - self.idle_bytes.take());
    }

    fn take_back(&self, buffer: &wgpu::Buffer) {
        self.idle_bytes.set(self.idle_bytes.get() + buffer.size());
        self.idle.borrow_mut().entry(buffer.size()).or_default().push(buffer.clone());
    }

    fn reuse(&self, size: u64) -> Option<wgpu::Buffer> {
        let buffer = self.idle.borrow_mut().get_mut(&size)?.pop()?;
        self.idle_bytes.set(self.idle_bytes.get() - size);
        Some(buffer)
    }

    /// Gives idle buffers back if they hold more than those in use: they are of sizes that are no longer asked for.
    fn trim_excess(&self) {
        let in_use = self.allocated.get() - self.idle_bytes.get();
        if self.idle_bytes.get() > in_use + SPARE {
            self.trim();
        }
    }

    /// A new buffer, if there is memory.
    fn create(&self, size: u64) -> Option<wgpu::Buffer> {
        self.trim_excess();
        let scope = self.context.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.context.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if ready(scope.pop()).flatten().is_some() {
            return None;
        }
        self.allocated.set(self.allocated.get() + size);
        self.most.set(self.most.get().max(self.allocated.get()));
        Some(buffer)
    }

    /// A second try, with everything that lies idle freed.
    fn create_after_trim(&self, size: u64) -> Option<wgpu::Buffer> {
        self.trim();
        self.context.wait(None).ok()?;
        self.create(size)
    }
}

/// A future's value if it is there at once, as it is everywhere but in a browser. There an error of the scope comes up
/// again when the buffer is used, as an error of the device.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Sizes are rounded up, so that tensors of about the same size share buffers: to a quarter of a power of two, and from
/// 16 MiB on to whole MiB.
fn size_class(bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    if bytes >= 16 * MIB {
        return bytes.next_multiple_of(MIB);
    }
    let step = (bytes.max(256).next_power_of_two() / 8).max(64);
    bytes.max(256).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_class_holds_its_size_and_wastes_at_most_a_quarter() {
        for bytes in [0, 1, 256, 257, 1000, 4096, 4097, 70_000, 16 << 20, (16 << 20) + 1, 1 << 30] {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4));
            assert!(class <= 256 || class <= bytes + bytes / 4, "{bytes} in {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
