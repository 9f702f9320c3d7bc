//! The whole traffic plane on loopback: real sockets, real worker threads, no kernel path.

mod lab;
mod limits;
mod listeners;
mod opening;
mod relaying;
mod routing;
