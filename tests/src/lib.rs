//! The lab: network namespaces, the daemon under test and real peers, so that scenarios run against what operators run.
//!
//! Everything here cleans up after itself when it is dropped, also when a test panics.

pub mod axe;
pub mod backend;
pub mod bpf;
pub mod bpffs;
pub mod browser;
pub mod bulk;
pub mod certs;
pub mod client;
pub mod control_plane;
pub mod counters;
pub mod distance;
pub mod dns_api;
pub mod etcd;
pub mod fd_store;
pub mod forge;
pub mod guest;
pub mod handmade;
pub mod lab;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod payload;
pub mod process;
pub mod receiver;
pub mod redis;
pub mod registration;
pub mod ring;
pub mod s1;
pub mod scripted;
pub mod secret;
pub mod skip;
pub mod talk;
pub mod tcx;
pub mod wait;
pub mod wire;
pub mod yaml;
