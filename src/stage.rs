//! Work that goes on beside the caller's: the one place where threads are made for it.
//!
//! A host without threads runs the same code, each job when it is handed over.

use crate::host::Instant;
use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// A worker that does jobs one after the other, and hands over their results in the same order.
///
/// The caller bounds what is on the way, by taking results. Dropped, jobs that have not begun are not done, and the worker has
/// ended.
pub(crate) struct Stage<J, R> {
    place: Place<J, R>,
    shared: Arc<Shared>,
    waited: Duration,
}

enum Place<J, R> {
    Beside { jobs: Option<Sender<J>>, results: Receiver<R>, thread: Option<JoinHandle<()>> },
    Here { run: Box<dyn FnMut(J) -> R>, results: VecDeque<R> },
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    nanoseconds: AtomicU64,
}

impl Shared {
    fn time<R>(&self, run: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let result = run();
        self.nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }
}

impl<J: Send + 'static, R: Send + 'static> Stage<J, R> {
    /// A worker on a thread of its own, or here where that cannot be had.
    pub fn beside(name: &str, run: impl FnMut(J) -> R + Send + 'static) -> Self {
        let run = Arc::new(Mutex::new(run));
        let shared = Arc::<Shared>::default();
        let ((jobs, incoming), (outgoing, results)) = (channel::<J>(), channel());
        let work = {
            let (run, shared) = (Arc::clone(&run), Arc::clone(&shared));
            move || {
                let mut run = run.lock().unwrap_or_else(PoisonError::into_inner);
                for job in incoming {
                    if shared.stop.load(Ordering::Relaxed) || outgoing.send(shared.time(|| run(job))).is_err()
                    {
                        break;
                    }
                }
            }
        };
        let spawned = if cfg!(target_family = "wasm") {
            None
        } else {
            Builder::new().name(name.to_owned()).spawn(work).ok()
        };
        match spawned {
            Some(thread) => {
                let place = Place::Beside { jobs: Some(jobs), results, thread: Some(thread) };
                Stage { place, shared, waited: Duration::ZERO }
            }
            None => Self::here(move |job| (run.lock().unwrap_or_else(PoisonError::into_inner))(job)),
        }
    }

    /// The caller does each job itself, when it hands it over.
    pub fn here(run: impl FnMut(J) -> R + 'static) -> Self {
        let place = Place::Here { run: Box::new(run), results: VecDeque::new() };
        Stage { place, shared: Arc::default(), waited: Duration::ZERO }
    }

    /// Hands a job over.
    pub fn push(&mut self, job: J) {
        match &mut self.place {
            // an error means that the thread has panicked, which `next` tells
            Place::Beside { jobs, .. } => drop(jobs.as_ref().map(|jobs| jobs.send(job))),
            Place::Here { run, results } => {
                let started = Instant::now();
                results.push_back(self.shared.time(|| run(job)));
                self.waited += started.elapsed();
            }
        }
    }

    /// Waits for the result of the oldest job whose result was not taken; none if there is no such job.
    ///
    /// # Panics
    /// As the worker did.
    pub fn next(&mut self) -> Option<R> {
        match &mut self.place {
            Place::Beside { results, thread, .. } => {
                let result = results.try_recv().ok().or_else(|| {
                    let started = Instant::now();
                    let result = results.recv();
                    self.waited += started.elapsed();
                    result.ok()
                });
                if result.is_none()
                    && let Some(thread) = thread.take()
                    && let Err(panic) = thread.join()
                {
                    resume_unwind(panic);
                }
                result
            }
            Place::Here { results, .. } => results.pop_front(),
        }
    }

    /// How long the worker has been at work, and how long the caller has waited for it.
    pub fn times(&self) -> Times {
        let busy = Duration::from_nanos(self.shared.nanoseconds.load(Ordering::Relaxed));
        Times { busy, waited: self.waited }
    }
}

impl<J, R> Drop for Stage<J, R> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Place::Beside { jobs, thread, .. } = &mut self.place {
            drop(jobs.take());
            if let Some(thread) = thread.take() {
                let _ = thread.join(); // a panic was told where a result was missing
            }
        }
    }
}

/// Work of which the caller wants no more than to know that it was done: it waits only when there is much of it.
pub(crate) struct Behind<J, E> {
    stage: Stage<J, Result<(), E>>,
    /// Bytes of each job that may not be done, and of all.
    sizes: VecDeque<u64>,
    bytes: u64,
    limit: u64,
}

impl<J: Send + 'static, E: Send + 'static> Behind<J, E> {
    /// A worker for which jobs of as many bytes may wait; with none, the caller does each job itself.
    pub fn new(name: &str, limit: u64, run: impl FnMut(J) -> Result<(), E> + Send + 'static) -> Self {
        let stage = if limit > 0 { Stage::beside(name, run) } else { Stage::here(run) };
        Behind { stage, sizes: VecDeque::new(), bytes: 0, limit }
    }

    /// Hands a job over when there is room for it. Gives the bytes of jobs that were done since the last call.
    ///
    /// # Errors
    /// The first of an earlier job.
    pub fn push(&mut self, job: J, bytes: u64) -> Result<u64, E> {
        let done = self.until(|behind| behind.bytes + bytes <= behind.limit)?;
        self.sizes.push_back(bytes);
        self.bytes += bytes;
        self.stage.push(job);
        Ok(done)
    }

    /// Waits until everything is done, and gives its bytes.
    ///
    /// # Errors
    /// As [`push`](Behind::push).
    pub fn flush(&mut self) -> Result<u64, E> {
        self.until(|_| false)
    }

    fn until(&mut self, enough: impl Fn(&Self) -> bool) -> Result<u64, E> {
        let mut done = 0;
        while !enough(self)
            && let Some(bytes) = self.sizes.pop_front()
        {
            self.bytes -= bytes;
            done += bytes;
            self.stage.next().unwrap_or(Ok(()))?;
        }
        Ok(done)
    }

    /// What it took.
    pub fn times(&self) -> Times {
        self.stage.times()
    }
}

/// What a worker cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// The worker was at work.
    pub busy: Duration,
    /// The caller waited.
    pub waited: Duration,
}

impl std::ops::AddAssign for Times {
    fn add_assign(&mut self, other: Times) {
        self.busy += other.busy;
        self.waited += other.waited;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let double = |n: u32| 2 * n;
        for mut stage in [Stage::beside("doubling", double), Stage::here(double)] {
            (0..5).for_each(|n| stage.push(n));
            assert_eq!((0..5).filter_map(|_| stage.next()).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
        }
    }

    #[test]
    fn a_job_goes_on_while_the_caller_does_something_else() {
        let (meet, met) = channel::<()>();
        let mut stage = Stage::beside("waiting", move |()| met.recv().is_ok());
        stage.push(());
        meet.send(()).unwrap(); // never reached, were the job done in `push`
        assert_eq!(stage.next(), Some(true));
    }

    #[test]
    fn what_has_not_begun_is_not_done_when_nobody_wants_it() {
        let (gate, opened) = channel::<()>();
        let (tell, told) = channel();
        let mut stage = Stage::beside("counting", move |n: u32| {
            let _ = tell.send(n);
            let _ = opened.recv();
        });
        (0..3).for_each(|n| stage.push(n));
        assert_eq!(told.recv(), Ok(0));
        stage.shared.stop.store(true, Ordering::Relaxed); // as dropping does, before it waits
        drop(gate);
        drop(stage);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_job_waits_for_room_and_an_error_is_told_by_a_later_call() {
        for limit in [10, 0] {
            let mut behind = Behind::new("failing", limit, |n: u32| if n == 2 { Err(n) } else { Ok(()) });
            let told = [(0, 6), (1, 6), (2, 10), (3, 1)].map(|(n, bytes)| behind.push(n, bytes));
            assert_eq!(told, [Ok(0), Ok(6), Ok(6), Err(2)], "with room for {limit}");
            assert_eq!(behind.flush(), Ok(0));
        }
    }

    #[test]
    #[should_panic(expected = "odd")]
    fn a_panic_of_the_worker_is_the_callers() {
        let mut stage = Stage::beside("odd", |n: u32| assert!(n != 1, "odd"));
        stage.push(0);
        stage.next();
        stage.push(1);
        stage.next();
    }
}
