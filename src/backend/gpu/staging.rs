//! A ring of mapped buffers through which data goes to the device.

use super::Result;
use super::context::Context;
use crate::backend::Error;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a buffer of the ring.
const CHUNK: u64 = 16 << 20;

/// Buffers of the ring: one to fill, the others on their way.
const RING: usize = 4;

/// Where in a buffer a piece may start.
const ALIGNMENT: u64 = 16;

pub(super) struct Staging {
    context: Rc<Context>,
    size: u64,
    /// Being filled.
    current: Option<wgpu::Buffer>,
    used: u64,
    /// Filled, and read by commands that are not submitted yet.
    filled: Vec<wgpu::Buffer>,
    /// Submissions that read buffers of the ring, oldest first.
    busy: VecDeque<u64>,
    /// Mapped again.
    free: Arc<Mutex<Vec<wgpu::Buffer>>>,
    made: usize,
}

impl Staging {
    pub fn new(context: Rc<Context>) -> Self {
        let size = CHUNK.min(context.kernels.limits().max_buffer_size / ALIGNMENT * ALIGNMENT);
        Staging {
            context,
            size,
            current: None,
            used: 0,
            filled: Vec::new(),
            busy: VecDeque::new(),
            free: Arc::default(),
            made: 0,
        }
    }

    /// Whether the ring is full of commands that are not submitted, so that [`fill`](Staging::fill) would wait forever.
    pub fn must_submit(&self) -> bool {
        self.current.is_none() && self.filled.len() == RING
    }

    /// Copies the first of the bytes into mapped memory: where they are, and how many.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<(wgpu::Buffer, u64, usize)> {
        let buffer = match self.current.take() {
            Some(buffer) => buffer,
            None => self.acquire()?,
        };
        let len = (bytes.len() as u64).min(self.size - self.used);
        let offset = self.used;
        let end = offset + len.next_multiple_of(4);
        let mut range =
            buffer.get_mapped_range_mut(offset..end).map_err(|e| Error::Internal(e.to_string()))?;
        range.slice(..len as usize).copy_from_slice(&bytes[..len as usize]);
        drop(range);
        self.used = end.next_multiple_of(ALIGNMENT);
        if self.used >= self.size {
            self.used = 0;
            self.filled.push(buffer.clone());
        } else {
            self.current = Some(buffer.clone());
        }
        Ok((buffer, offset, len as usize))
    }

    /// Unmaps what was filled; the commands that read it can be submitted then.
    pub fn seal(&mut self) {
        self.filled.extend(self.current.take());
        self.used = 0;
        self.filled.iter().for_each(wgpu::Buffer::unmap);
    }

    /// Asks for what was sealed to be mapped again, when the submission is done.
    pub fn recall(&mut self, submission: u64) {
        if self.filled.is_empty() {
            return;
        }
        for buffer in self.filled.drain(..) {
            let (free, mapped) = (Arc::clone(&self.free), buffer.clone());
            buffer.map_async(wgpu::MapMode::Write, .., move |result| {
                if result.is_ok() {
                    lock(&free).push(mapped);
                }
            });
        }
        self.busy.push_back(submission);
    }

    fn acquire(&mut self) -> Result<wgpu::Buffer> {
        loop {
            if let Some(buffer) = lock(&self.free).pop() {
                return Ok(buffer);
            }
            if self.made < RING {
                self.made += 1;
                return Ok(self.create());
            }
            match self.busy.pop_front() {
                Some(submission) => self.context.wait(Some(submission))?,
                // The device did not map them again; in a browser, not yet.
                None => return Ok(self.create()),
            }
        }
    }

    fn create(&self) -> wgpu::Buffer {
        self.context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: self.size,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
