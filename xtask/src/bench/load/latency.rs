//! Latency samples and their percentiles.

/// Every sample of a window; a ping-pong of two seconds is some 400,000 of them.
#[derive(Default)]
pub(in crate::bench) struct Samples {
    nanoseconds: Vec<u64>,
}

impl Samples {
    pub(in crate::bench) fn record(&mut self, elapsed: std::time::Duration) {
        self.nanoseconds.push(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(in crate::bench) fn len(&self) -> usize {
        self.nanoseconds.len()
    }

    /// Microseconds at `quantile` (0 to 1), by nearest rank. `None` without samples.
    pub(in crate::bench) fn microseconds(&mut self, quantile: f64) -> Option<f64> {
        self.nanoseconds.sort_unstable();
        let rank = (quantile * self.nanoseconds.len() as f64).ceil() as usize;
        let value = self.nanoseconds.get(rank.saturating_sub(1))?;
        Some(*value as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples = Samples::default();
        assert_eq!(samples.microseconds(0.5), None);
        for n in (1..=100).rev() {
            samples.record(Duration::from_micros(n));
        }
        assert_eq!(samples.microseconds(0.5), Some(50.0));
        assert_eq!(samples.microseconds(0.99), Some(99.0));
        assert_eq!(samples.microseconds(1.0), Some(100.0));
    }
}
