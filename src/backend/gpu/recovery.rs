//! Another try after something went wrong on the device: with smaller slices where memory ran out, and on a device opened anew
//! where what was done on it can no longer be trusted.

use super::context::Context;
use super::{Config, Error, Fault, Gpu, Live, Pace, Result, adapter};
use crate::backend::Backend;

/// Tries before it is given up.
const TRIES: u32 = 4;

/// Tensors are not asked to be smaller than this.
const SMALLEST_SLICE: u64 = 16 << 20;

/// How a device was opened.
pub(super) struct Origin {
    selector: Option<String>,
    config: Config,
}

impl Origin {
    pub fn new(selector: Option<&str>, config: &Config) -> Self {
        Origin { selector: selector.map(str::to_owned), config: config.clone() }
    }

    pub async fn open(&self, config: &Config) -> Result<Context> {
        let adapter = adapter::choose(self.selector.as_deref()).await?;
        Context::open(&adapter, config).await
    }

    /// The configuration after a failure at some pace: a driver's watchdog may have found a submission too long.
    fn next_config(&self, pace: Pace) -> Config {
        Config {
            dispatch_flops: Some(pace.dispatch_flops / 2),
            submit_flops: Some(pace.submit_flops / 2),
            fault: self.config.fault.filter(|fault| fault.again).map(|fault| Fault { at: 0, ..fault }),
            ..self.config.clone()
        }
    }
}

impl Gpu {
    /// [`Backend::recover`]
    pub(super) async fn try_recover(&self, error: &Error) -> bool {
        if matches!(error, Error::OutOfMemory { .. }) {
            if !self.halve_slices() {
                return false;
            }
        } else {
            self.tries.set(self.tries.get() + 1);
            if self.tries.get() > TRIES {
                return false;
            }
        }
        match self.live().context.check() {
            // whatever it was, what was queued since is of no use; and the error may have come before the news of its cause
            Err(cause) => self.open_again(&cause).await,
            Ok(()) => matches!(error, Error::OutOfMemory { .. } | Error::Damaged),
        }
    }

    fn halve_slices(&self) -> bool {
        let half = self.max_tensor_bytes() / 2;
        self.trim();
        self.slice_bytes.set(half);
        self.shortages.set(self.shortages.get() + 1);
        half >= SMALLEST_SLICE
    }

    async fn open_again(&self, cause: &Error) -> bool {
        let Some(origin) = &self.origin else { return false };
        let config = origin.next_config(self.pace());
        let Ok(context) = origin.open(&config).await else {
            return false; // what went wrong before is what will be reported
        };
        let before = self.live.replace(Live::new(context, &config));
        if matches!(cause, Error::Silent(_)) {
            // to let go of a device is to wait for it
            std::mem::forget(before);
        }
        true
    }
}
