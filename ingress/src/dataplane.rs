//! The kernel path: the only module that knows aya. Loads and pins the programs, installs flows, reaps them.
//!
//! Userspace serves every connection without it; [`KernelStatus`] says what is missing.

pub mod view;

pub use view::{InterfaceStatus, KernelStatus};
