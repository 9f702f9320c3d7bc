//! `cargo xtask test vm`: the kernel path on the kernels that Debian ships. Each boots under QEMU and runs the program tests
//! and the very scenarios that run on this host, with the daemon and the peers that were built and installed here; among them those
//! for which the host's own kernel may lack a kind of device.

mod archive;
mod built;
mod machine;
mod modules;
mod package;
mod ramdisk;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::skip::find_program;

use crate::step;
use crate::test::Sum;
use built::Built;
use package::Kernel;

/// A kernel to test on.
#[derive(Clone, Copy)]
pub(crate) struct Guest {
    /// How it is called here.
    pub(crate) name: &'static str,
    /// Debian's suite that has it.
    suite: &'static str,
    /// By their full names.
    scenarios: &'static [&'static str],
}

/// The oldest kernel that is promised: clsact instead of TCX, and the strictest verifier.
pub(crate) const OLDEST: Guest = Guest { name: "6.1", suite: "bookworm", scenarios: &SCENARIOS };
/// What Debian 13 has.
pub(crate) const NEWER: Guest = Guest { name: "6.12", suite: "bookworm-backports", ..OLDEST };

impl Guest {
    /// Programs, and what matters most of the rest.
    pub(crate) const fn in_short(self) -> Self {
        Self { scenarios: SCENARIOS.split_at(SHORT).0, ..self }
    }
}

/// Load and attach, splice with hashes, kill -9; a kind of link. Then the longer ones: further links, adoption, detach, admission by XDP and
/// by tc.
const SCENARIOS: [&str; 13] = [
    "scenarios::s1_survival::download_completes_although_the_daemon_is_killed_in_its_middle",
    "scenarios::s1_links::vlans_carry_both_sides",
    "scenarios::s1_links::bond_carries_the_backends",
    "scenarios::s1_hosts::vrf::listener_in_a_vrf_is_served_in_the_kernel",
    "scenarios::s1_links::segments_that_a_device_gathers_in_a_list_are_translated_each",
    "scenarios::s1_links::devices::device_that_merges_segments_for_good_relays_until_that_is_switched_off",
    "scenarios::s1_survival::restarted_daemon_adopts_the_connections_of_its_predecessor",
    "scenarios::s1_survival::detach_leaves_nothing_behind",
    "scenarios::s1_admission::one_source_that_connects_too_fast_does_not_keep_others_out",
    "scenarios::s1_passthrough::each_name_reaches_its_backend_which_sees_the_client",
    "scenarios::s1_admission::private_port_is_out_of_reach_from_the_public_side_on_every_rung",
    "scenarios::s1_hosts::guests::filter_at_our_priority_is_left_alone_and_shown",
    "scenarios::s1_hosts::obstacles::programs_that_somebody_takes_off_a_device_are_put_back",
];
const SHORT: usize = 2;
/// Far more than a healthy run takes.
const LIMIT: Duration = Duration::from_secs(25 * 60);
const PROGRAM_TESTS: &str = "dataplane::program_tests::";

/// What came of a guest.
pub(crate) enum Outcome {
    Ran(Sum),
    /// The host lacks something, which is this.
    Skipped(String),
}

/// The guests that `words` name, or both, and the words that are no guest's name: parts of scenarios' names.
pub(crate) fn chosen(words: &[String]) -> (Vec<Guest>, Vec<&str>) {
    let is_named = |guest: &Guest| words.iter().any(|word| word == guest.name);
    let all = [OLDEST, NEWER];
    let named: Vec<Guest> = all.into_iter().filter(is_named).collect();
    let parts = words.iter().map(String::as_str).filter(|word| all.iter().all(|guest| guest.name != *word)).collect();
    (if named.is_empty() { all.into() } else { named }, parts)
}

/// Boots the guest and runs its tests; an error if they fail. With `parts`: every scenario with one of them in its name, and no other
/// test.
pub(crate) fn run(guest: &Guest, parts: &[&str]) -> Result<Outcome> {
    step::announce(&format!("Linux {}, under QEMU", guest.name));
    let needed = ramdisk::PEERS.iter().chain(&TOOLS);
    let absent: Vec<&str> = needed.copied().filter(|program| find_program(program).is_none()).collect();
    if !absent.is_empty() {
        return Ok(Outcome::Skipped(format!("not installed: {} (scripts/install-tools.sh)", absent.join(", "))));
    }
    let kernel = match Kernel::fetch(guest.suite, &directory()?.join(format!("linux-{}", guest.name))) {
        Ok(kernel) => kernel,
        Err(e) => return Ok(Outcome::Skipped(format!("Debian's kernel of {} cannot be had: {e:#}", guest.suite))),
    };
    let built = Built::build()?;
    let known = built.list_scenarios()?;
    let scenarios = if parts.is_empty() { listed(guest, &known)? } else { matching(parts, &known)? };
    let programs = parts.is_empty().then_some(PROGRAM_TESTS);
    let started = Instant::now();
    let file = tempfile::NamedTempFile::new_in(directory()?).context("making a place for the ramdisk")?;
    ramdisk::write(file.path(), &kernel.modules(), &built, programs, &scenarios)
        .with_context(|| format!("packing the ramdisk of {}", kernel.release))?;

    let mut sum = Sum::default();
    let ended = machine::run(&kernel.image(), file.path(), LIMIT, |line| {
        eprintln!("{} {:>4} s: {line}", guest.name, started.elapsed().as_secs());
        sum.add(line);
    });
    ended.with_context(|| format!("on Linux {}", kernel.release))?;
    let expected = scenarios.len() + usize::from(programs.is_some());
    ensure!(sum.passed >= expected, "on Linux {}: only {} passed", kernel.release, sum.passed);
    eprintln!("Linux {}: {} passed in {} s", kernel.release, sum.passed, started.elapsed().as_secs());
    Ok(Outcome::Ran(sum))
}

/// A scenario that was renamed would be passed over in silence.
fn listed<'a>(guest: &Guest, known: &'a [String]) -> Result<Vec<&'a str>> {
    let find = |name: &&str| {
        let found = known.iter().find(|known| known == name).map(String::as_str);
        found.with_context(|| format!("there is no scenario {name}: xtask/src/vm.rs names it"))
    };
    guest.scenarios.iter().map(find).collect()
}

fn matching<'a>(parts: &[&str], known: &'a [String]) -> Result<Vec<&'a str>> {
    let is_meant = |name: &&str| parts.iter().any(|part| name.contains(part));
    let meant: Vec<&str> = known.iter().map(String::as_str).filter(is_meant).collect();
    ensure!(!meant.is_empty(), "no scenario has {} in its name", parts.join(" or "));
    Ok(meant)
}

/// Where kernels stay, so that each is fetched once. Removing it fetches newer ones.
fn directory() -> Result<PathBuf> {
    let directory = step::root().join("target/vm");
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

const TOOLS: [&str; 7] = [machine::QEMU, "apt-get", "apt-cache", "dpkg-deb", "ldd", "strip", "xz"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_guests_and_scenarios() -> Result<()> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let names = |(guests, parts): (Vec<Guest>, Vec<&str>)| {
            (guests.iter().map(|guest| guest.name).collect::<Vec<_>>(), parts.join(" "))
        };
        assert_eq!(names(chosen(&[])), (vec!["6.1", "6.12"], String::new()));
        assert_eq!(names(chosen(&words(&["6.12"]))), (vec!["6.12"], String::new()));
        assert_eq!(names(chosen(&words(&["vlan", "6.1", "bond"]))), (vec!["6.1"], "vlan bond".to_owned()));

        let known = words(&["links::vlans", "links::bond", "hosts::vrf"]);
        assert_eq!(matching(&["vlan", "vrf"], &known)?, ["links::vlans", "hosts::vrf"]);
        assert!(matching(&["wlan"], &known).is_err());
        Ok(())
    }
}
