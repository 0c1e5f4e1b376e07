//! Another try after memory ran out or the device was lost: with smaller slices, on a device opened anew.

use super::context::Context;
use super::{Config, Error, Gpu, Live, Pace, Result, adapter};
use crate::backend::Backend;
use std::cell::Cell;

/// Tries before it is given up.
const TRIES: u32 = 4;

/// Tensors are not asked to be smaller than this.
const SMALLEST_SLICE: u64 = 16 << 20;

/// How a device was opened, and how often it has been tried again since.
pub(super) struct Origin {
    selector: Option<String>,
    config: Config,
    losses: Cell<u32>,
}

impl Origin {
    pub fn new(selector: Option<&str>, config: &Config) -> Self {
        Origin { selector: selector.map(str::to_owned), config: config.clone(), losses: Cell::new(0) }
    }

    pub async fn open(&self) -> Result<Context> {
        let adapter = adapter::choose(self.selector.as_deref()).await?;
        Context::open(&adapter, &self.config).await
    }

    /// The configuration after one more loss at some pace: a driver's watchdog may have found a submission too long.
    fn next_config(&self, pace: Pace) -> Option<Config> {
        let losses = self.losses.get() + 1;
        self.losses.set(losses);
        let config = Config {
            dispatch_flops: Some(pace.dispatch_flops / 2),
            submit_flops: Some(pace.submit_flops / 2),
            ..self.config.clone()
        };
        (losses <= TRIES).then_some(config)
    }
}

impl Gpu {
    /// [`Backend::recover`]
    pub(super) async fn try_recover(&self, error: &Error) -> bool {
        match error {
            Error::OutOfMemory { .. } => self.halve_slices(),
            // what follows from a loss may come before the news of it
            _ if self.is_lost() => self.open_again().await,
            _ => false,
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self.live().context.check(), Err(Error::DeviceLost(_)))
    }

    fn halve_slices(&self) -> bool {
        let half = self.max_tensor_bytes() / 2;
        self.trim();
        self.slice_bytes.set(half);
        self.shortages.set(self.shortages.get() + 1);
        half >= SMALLEST_SLICE
    }

    async fn open_again(&self) -> bool {
        let Some(origin) = &self.origin else { return false };
        let Some(config) = origin.next_config(self.pace()) else { return false };
        match origin.open().await {
            Ok(context) => {
                self.live.replace(Live::new(context, &config));
                true
            }
            Err(_) => false, // the loss itself is what will be reported
        }
    }
}
