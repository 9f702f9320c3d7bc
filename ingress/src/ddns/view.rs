//! What operators see of the records that this node keeps. Plain data.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DnsRecordView {
    pub zone: String,
    pub provider: String,
    pub name: String,
    /// `A` or `AAAA`.
    pub kind: String,
    /// What it should say; `None`: this node does not know its address.
    pub wanted: Option<String>,
    /// What the provider last said, or took.
    pub published: Option<String>,
    /// Why they differ.
    pub error: Option<String>,
    /// When the provider last confirmed it, Unix seconds.
    pub confirmed: Option<f64>,
    pub changes_total: u64,
    pub failures_total: u64,
}

impl DnsRecordView {
    /// The provider has what this node wants.
    pub fn is_current(&self) -> bool {
        self.wanted.is_some() && self.wanted == self.published && self.error.is_none()
    }
}
