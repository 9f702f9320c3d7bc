//! What `ingress status`, `ingress hooks` and the metrics see of a hook. Plain data.

use serde::{Deserialize, Serialize};

/// One hook at one moment. Counters begin with the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HookStatus {
    pub name: String,
    /// `webhook` or `command`.
    pub kind: String,
    /// Whom it tells, without what may be secret of it.
    pub place: String,
    /// `good`, or `failing`: the last attempt failed.
    pub state: String,
    /// Messages that are not delivered yet.
    pub waiting: u64,
    pub delivered_total: u64,
    /// Attempts that failed and were to be made again.
    pub retried_total: u64,
    /// Messages that were refused, or given up.
    pub failed_total: u64,
    /// Messages that newer ones pushed out.
    pub dropped_total: u64,
    /// Unix seconds.
    pub last_success: Option<f64>,
    /// Unix seconds, of the first failure since the last success.
    pub failing_since: Option<f64>,
    pub last_error: Option<String>,
}

impl HookStatus {
    pub const GOOD: &'static str = "good";
    pub const FAILING: &'static str = "failing";
}

/// What became of a message that an operator sent to try a hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookTested {
    pub name: String,
    /// Of the message.
    pub id: String,
}
