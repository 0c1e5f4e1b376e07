//! A value that a callback of the device brings later.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// What has come of it so far.
struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// A value that comes later.
pub(super) struct Promise<T>(Arc<Mutex<State<T>>>);

impl<T> Promise<T> {
    /// A promise, and what keeps it.
    pub fn new() -> (Promise<T>, impl FnOnce(T)) {
        let state = Arc::new(Mutex::new(State { value: None, waker: None }));
        let promised = Arc::clone(&state);
        let keep = move |value| {
            let mut state = lock(&promised);
            state.value = Some(value);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        };
        (Promise(state), keep)
    }

    /// Waits for the value.
    pub async fn kept(self) -> T {
        poll_fn(|task| {
            let mut state = lock(&self.0);
            match state.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    state.waker = Some(task.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
