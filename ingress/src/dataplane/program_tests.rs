//! The kernel programs as the kernel runs them: `BPF_PROG_TEST_RUN` over crafted and captured packets (bpf(2)), no device, no traffic.
//! Needs what the daemon needs (CAP_BPF and friends, a bpf file system); without it each test says so and passes.

mod admission;
mod captured;
mod egress;
mod endings;
mod frame;
mod handshake;
mod refused;
mod rig;
mod sack;
mod six;
mod splice;
mod too_big;
mod verdicts;
mod verifier;
