//! `ingress`: one daemon per proxy host. See ARCHITECTURE.md for the map of these modules.

pub mod admin;
pub mod balance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod ddns;
pub mod etcd;
pub mod events;
pub mod flow;
pub mod health;
pub mod hooks;
pub mod import;
pub mod l4;
pub mod metrics;
pub mod outbound;
pub mod peers;
pub mod providers;
pub mod resolve;
pub mod route;
pub mod secret;
pub mod serve;
pub mod snapshot;
pub mod watch;
