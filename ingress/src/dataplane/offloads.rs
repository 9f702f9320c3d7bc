//! What a device makes of packets before anybody sees them (ethtool(8), `ethtool -k`): of its features, those that matter to a
//! splice. linux/ethtool.h says how to ask.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    /// Large receive offload: segments are merged for good. Linux turns it off where it forwards.
    pub(super) merges: bool,
    /// GRO may gather segments in a list, each with its own headers. UDP's; TCP's since Linux 6.10, of connections without a socket.
    pub(super) lists: bool,
}

const LRO: &str = "rx-lro";
const LISTS: &str = "rx-gro-list";

const GET_STRING_SET_INFO: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
/// `ETH_SS_FEATURES`
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`, in words of four bytes.
const NAME: usize = 32 / 4;
/// Of each 32 features: available, requested, active, never changed.
const WORDS_PER_BLOCK: usize = 4;
const ACTIVE: usize = 2;
/// More than any kernel has, in blocks of 32.
const MOST_BLOCKS: usize = 8;

/// Asks the kernel about devices of this namespace.
pub(super) struct Ethtool {
    socket: std::os::fd::OwnedFd,
    lro: Option<usize>,
    lists: Option<usize>,
}

impl Ethtool {
    /// The features' names are the same for all devices; any can be asked for them.
    pub(super) fn open(any: &CStr) -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut ethtool = Self { socket, lro: None, lists: None };
        let names = ethtool.names(any)?;
        let index = |wanted: &str| names.iter().position(|name| name == wanted);
        (ethtool.lro, ethtool.lists) = (index(LRO), index(LISTS));
        Ok(ethtool)
    }

    pub(super) fn offloads(&self, device: &CStr) -> io::Result<Offloads> {
        // struct ethtool_gfeatures {cmd, size, blocks}.
        let mut words = [0; 2 + MOST_BLOCKS * WORDS_PER_BLOCK];
        (words[0], words[1]) = (GET_FEATURES, MOST_BLOCKS as u32);
        self.ask(device, &mut words)?;
        Ok(Offloads { merges: is_active(&words[2..], self.lro), lists: is_active(&words[2..], self.lists) })
    }

    fn names(&self, device: &CStr) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info {cmd, reserved, mask: u64, lengths}, on a little-endian machine.
        let mut info = [GET_STRING_SET_INFO, 0, 1 << FEATURES, 0, 0];
        self.ask(device, &mut info)?;
        // struct ethtool_gstrings {cmd, set, length, names}. Between the two questions no name is added: they are the kernel's own.
        let mut words = vec![0; 3 + info[4] as usize * NAME];
        (words[0], words[1], words[2]) = (GET_STRINGS, FEATURES, info[4]);
        self.ask(device, &mut words)?;
        Ok(words[3..].chunks_exact(NAME).map(name).collect())
    }

    /// Fills `words`, which begin with a command.
    fn ask(&self, device: &CStr, words: &mut [u32]) -> io::Result<()> {
        let mut request = request(device);
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the name ends with a zero; each command above fills no more words than its caller has made room for.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// For an ioctl about a device (netdevice(7)). Longer names than the kernel's are cut.
pub(super) fn request(device: &CStr) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(device.to_bytes()) {
        *to = *from as libc::c_char;
    }
    request
}

fn name(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `blocks`: as the kernel gives them. A feature without an index is one that this kernel does not know.
fn is_active(blocks: &[u32], feature: Option<usize>) -> bool {
    feature.is_some_and(|feature| {
        let word = blocks.get(feature / 32 * WORDS_PER_BLOCK + ACTIVE);
        word.is_some_and(|word| word & (1 << (feature % 32)) != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_with_names() {
        let ethtool = Ethtool::open(c"lo").expect("a socket");
        let names = ethtool.names(c"lo").expect("loopback has features");
        assert!(names.iter().any(|name| name == "tx-checksum-ip-generic"), "{names:?}");
        assert!(ethtool.lro.is_some() && ethtool.lists.is_some(), "{names:?}");
        assert_eq!(ethtool.offloads(c"lo").expect("loopback has features"), Offloads::default());
        assert!(ethtool.offloads(c"ing-none").is_err());
    }

    #[test]
    fn a_feature_is_active_by_its_own_bit() {
        let mut blocks = [0; 2 * WORDS_PER_BLOCK];
        blocks[WORDS_PER_BLOCK + ACTIVE] = 1 << 3;
        assert!(is_active(&blocks, Some(35)));
        for other in [Some(3), Some(34), Some(36), Some(99), None] {
            assert!(!is_active(&blocks, other), "{other:?}");
        }
    }
}
