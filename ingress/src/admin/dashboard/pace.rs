//! The last minutes in numbers, so that a chart is not empty when somebody opens the page: usually because something is wrong.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::metrics::process::ProcessUse;

/// Counters at one moment; rates are the page's own differences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Unix seconds.
    pub(crate) time: f64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// Open now.
    pub(crate) in_kernel: u64,
    pub(crate) relayed: u64,
    /// Payload bytes, over all listeners.
    pub(crate) to_backend: u64,
    pub(crate) to_client: u64,
    pub(crate) cpu_seconds: f64,
}

#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<VecDeque<Sample>>);

impl Pace {
    /// As often as the page asks.
    const EVERY: Duration = Duration::from_secs(2);
    /// Five minutes.
    const KEPT: usize = 150;

    /// Takes samples until `shutdown`.
    pub(crate) async fn keep(admin: Arc<Admin>, shutdown: CancellationToken) {
        let mut ticks = interval(Self::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => admin.pace.push(Sample::take(&admin)),
            }
        }
    }

    fn push(&self, sample: Sample) {
        let mut samples = self.0.lock();
        if samples.len() == Self::KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Those that are younger, the oldest first.
    pub(super) fn since(&self, time: f64) -> Vec<Sample> {
        self.0.lock().iter().filter(|sample| sample.time > time).copied().collect()
    }
}

impl Sample {
    fn take(admin: &Admin) -> Self {
        let mut sample = Self {
            time: crate::admin::unix_now(),
            accepted: 0,
            refused: 0,
            in_kernel: 0,
            relayed: 0,
            to_backend: 0,
            to_client: 0,
            cpu_seconds: ProcessUse::read_cpu_and_memory().cpu_seconds.unwrap_or(0.0),
        };
        for counts in admin.listeners().iter().map(|listener| &listener.counts) {
            sample.accepted += counts.accepted_total;
            sample.refused += counts.refused.values().sum::<u64>();
            sample.in_kernel += counts.open_kernel;
            sample.relayed += counts.open_relay;
            sample.to_backend += counts.bytes.to_backend;
            sample.to_client += counts.bytes.to_client;
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: f64) -> Sample {
        Sample {
            time,
            accepted: 1,
            refused: 0,
            in_kernel: 0,
            relayed: 0,
            to_backend: 0,
            to_client: 0,
            cpu_seconds: 0.0,
        }
    }

    #[test]
    fn only_what_is_new_is_told_and_old_samples_go() {
        let pace = Pace::default();
        (0..Pace::KEPT + 10).for_each(|n| pace.push(at(n as f64)));
        assert_eq!(pace.since(f64::MIN).len(), Pace::KEPT);
        assert_eq!(pace.since(f64::MIN)[0].time, 10.0);
        assert_eq!(pace.since((Pace::KEPT + 8) as f64), [at((Pace::KEPT + 9) as f64)]);
    }
}
