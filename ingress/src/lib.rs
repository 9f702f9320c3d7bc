//! `ingress`: one daemon per proxy host. See ARCHITECTURE.md for the map of these modules.

pub mod balance;
pub mod config;
pub mod dataplane;
pub mod flow;
pub mod l4;
pub mod route;
pub mod snapshot;
