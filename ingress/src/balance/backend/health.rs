//! What the checks say about one backend.

use std::fmt;
use std::time::{Duration, Instant};

/// What the health checks say.
#[derive(Clone, Debug)]
pub struct Health {
    pub state: HealthState,
    /// When `state` began.
    pub since: Instant,
    pub last_check: Option<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// No probe has ended yet, or the pool has no checks. Takes connections.
    Unchecked,
    Up,
    /// It is well, and another one takes the connections.
    Standby,
    Down,
}

impl HealthState {
    /// The word in views and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Up => "up",
            Self::Standby => "standby",
            Self::Down => "down",
        }
    }
}

/// One finished probe.
#[derive(Clone, Debug)]
pub struct Check {
    pub at: Instant,
    /// From the first packet to the verdict; `None` if it failed.
    pub latency: Option<Duration>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Check {
    pub fn good(latency: Duration, at: Instant) -> Self {
        Self { at, latency: Some(latency), error: None }
    }

    pub fn failed(error: impl fmt::Display, at: Instant) -> Self {
        Self { at, latency: None, error: Some(error.to_string()) }
    }
}
