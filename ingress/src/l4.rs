//! Accepts connections, reads the ClientHello, connects to a backend, then relays or hands off to the kernel.

pub mod outcome;
