//! Configurations of other proxies -> one of ours, for the day of the move. Pure.
//!
//! What is carried over is what we would do with it; everything else is named with its place, and nothing is guessed.

pub mod haproxy;
pub mod traefik;
mod write;

use std::time::Duration;

use serde::Serialize;

use crate::config::PoolConfig;

/// A configuration in the making, in the order of its source.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    pub pools: Vec<(String, PoolConfig)>,
    pub left_out: Vec<LeftOut>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    pub bind: Vec<String>,
    pub device: Option<String>,
    /// `None`: routes by server name.
    pub pool: Option<String>,
    /// With server names: the pool of all others.
    pub default: Option<String>,
    pub hello_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub max_connections: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub sni: Vec<String>,
    pub pool: String,
    /// Only there; empty: on all that route by server name.
    pub listeners: Vec<String>,
}

/// Something that the source says and the draft does not, or says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// `haproxy.cfg:12`, or a name in the source's words.
    pub place: String,
    pub why: String,
}

impl Draft {
    fn left_out(&mut self, place: impl Into<String>, why: impl Into<String>) {
        let left_out = LeftOut { place: place.into(), why: why.into() };
        if !self.left_out.contains(&left_out) {
            self.left_out.push(left_out);
        }
    }
}
