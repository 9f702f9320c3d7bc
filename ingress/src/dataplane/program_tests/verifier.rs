//! What the programs ask of the kernel's verifier.

use ingress_ebpf::names::program;

use super::rig::rig;

/// `BPF_COMPLEXITY_LIMIT_INSNS` of linux/bpf.h: it follows a program for as many instructions, on all ways together, and refuses it then.
const LIMIT: u32 = 1_000_000;

/// Compilers and verifiers change, and what has room for neither is refused one day. It is time, too, that a starting daemon waits.
#[test]
fn programs_stay_far_from_the_limit_of_the_verifier() {
    let Some(rig) = rig() else { return };
    for name in program::TC.iter().copied().chain([program::XDP, program::XDP_GENERIC]) {
        let verified = rig.verified_instructions(name);
        eprintln!("{name}: {verified} instructions");
        assert!((1..LIMIT / 2).contains(&verified), "{name}: {verified} of {LIMIT}");
    }
}
