//! SYNs of a denied source, as fast as one thread can send them, and how many of them the other end drops a second.
//!
//! ```text
//!  sender  eth0 ---veth--- pub0  proxy
//! ```
//! Both ends share the CPUs, so what dropping saves goes into sending: read the rates as ratios.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::PerCpuArray;
use aya::programs::tc::TcAttachOptions;
use aya::programs::xdp::XdpMode;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};
use ingress_ebpf::admission::Pace;
use ingress_ebpf::header::SYN;
use ingress_ebpf::names::{map, program};
use ingress_ebpf::verdict::Verdict;
use ingress_tests::netns::Namespace;

use super::frame::{DENIED, LISTENER, tcp};
use super::programs::Programs;

/// Who drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Xdp,
    Generic,
    Tc,
    /// The earliest hook that it has: ingress of the device.
    NftablesIngress,
    /// The one that operators use: before conntrack.
    NftablesRaw,
}

impl Way {
    pub(super) const ALL: [Self; 5] = [Self::Xdp, Self::Generic, Self::Tc, Self::NftablesIngress, Self::NftablesRaw];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Generic => "generic_xdp",
            Self::Tc => "tc",
            Self::NftablesIngress => "nftables_ingress",
            Self::NftablesRaw => "nftables_raw",
        }
    }
}

/// The address of the flooded device.
const PUB0: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WINDOW: Duration = Duration::from_secs(2);
/// Packets per system call.
const BATCH: usize = 64;

/// A network of its own, one flood, and what was dropped in it.
pub(super) fn dropped_per_second(way: Way) -> Result<f64> {
    let (sender, proxy) = (Namespace::new("bench-flood")?, Namespace::new("bench-proxy")?);
    sender.ip_batch(&format!("link add eth0 type veth peer name pub0 netns {}\nlink set eth0 up\n", proxy.name()))?;
    proxy.ip_batch("link set pub0 address 02:00:00:00:00:01\naddr add 192.0.2.1/24 dev pub0\nlink set pub0 up\n")?;
    match way {
        Way::Xdp | Way::Generic | Way::Tc => by_programs(way, &sender, &proxy),
        Way::NftablesIngress | Way::NftablesRaw => by_nftables(way, &sender, &proxy),
    }
}

fn by_programs(way: Way, sender: &Namespace, proxy: &Namespace) -> Result<f64> {
    let mut programs = Programs::load()?;
    programs.set_rules(Pace { interval: 1, ahead: u64::MAX / 2 })?;
    let pub0 = proxy.exec(|| nix::net::if_::if_nametoindex("pub0")).context("the proxy's device")?;
    programs.guard(pub0)?;
    let bpf = &mut programs.bpf;
    let verdicts: PerCpuArray<_, u64> = bpf.take_map(map::VERDICTS).context(map::VERDICTS)?.try_into()?;
    // Links end with the programs, at the end of this function.
    proxy.exec(|| -> Result<()> {
        match way {
            Way::Xdp | Way::Generic => {
                let (name, mode) = match way == Way::Xdp {
                    true => (program::XDP, XdpMode::Driver),
                    false => (program::XDP_GENERIC, XdpMode::Skb),
                };
                let xdp: &mut Xdp = bpf.program_mut(name).context("XDP")?.try_into()?;
                xdp.attach("pub0", mode)?;
            }
            Way::Tc | Way::NftablesIngress | Way::NftablesRaw => {
                let tc: &mut SchedClassifier = bpf.program_mut(program::TC_IN).context("tc ingress")?.try_into()?;
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                tc.attach_with_options("pub0", TcAttachType::Ingress, first)?;
            }
        }
        Ok(())
    })?;
    let dropped = || -> Result<u64> { Ok(verdicts.get(&(Verdict::DropDenied as u32), 0)?.iter().sum()) };
    flood(sender, dropped)
}

fn by_nftables(way: Way, sender: &Namespace, proxy: &Namespace) -> Result<f64> {
    let (family, hook) = match way {
        Way::NftablesRaw => ("ip", "type filter hook prerouting priority raw; policy accept;"),
        Way::NftablesIngress | Way::Xdp | Way::Generic | Way::Tc => {
            ("netdev", "type filter hook ingress device \"pub0\" priority 0; policy accept;")
        }
    };
    let [a, b, c, _] = DENIED;
    let others: Vec<String> = (0..1_000).map(|n| format!("100.{}.{}.0/24", 64 + n / 256, n % 256)).collect();
    proxy.nft(&format!(
        "table {family} bench {{
            set denied {{ type ipv4_addr; flags interval; elements = {{ {a}.{b}.{c}.0/24, {} }} }}
            counter dropped {{ }}
            chain input {{ {hook}
                tcp dport {} ip saddr @denied counter name dropped drop
            }}
        }}\n",
        others.join(", "),
        LISTENER.1
    ))?;
    let dropped = || -> Result<u64> {
        let listed = proxy.run("nft", &["list", "counter", family, "bench", "dropped"])?;
        let packets = listed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|word| word.parse().ok()).with_context(|| format!("nft wrote {listed:?}"))
    };
    flood(sender, dropped)
}

fn flood(sender: &Namespace, dropped: impl Fn() -> Result<u64>) -> Result<f64> {
    let device = sender.exec(|| nix::net::if_::if_nametoindex("eth0")).context("the sender's device")?;
    let socket = sender.exec(|| packet_socket(device)).context("opening a packet socket")?;
    let mut packet = tcp(DENIED, LISTENER, SYN);
    packet[..6].copy_from_slice(&PUB0);
    let mut part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    // SAFETY: all zeroes is a valid mmsghdr.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    let mut batch = [message; BATCH];
    let mut send_for = |time: Duration| -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            // SAFETY: each header points to `part`, which points to `packet`; both outlive the call.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), batch.as_mut_ptr(), BATCH as u32, 0) };
            // A full queue is the point of a flood.
            let error = io::Error::last_os_error();
            ensure!(sent >= 0 || error.raw_os_error() == Some(libc::ENOBUFS), "sending: {error}");
        }
        Ok(())
    };
    send_for(WINDOW / 10)?;
    let (begun, before) = (Instant::now(), dropped()?);
    send_for(WINDOW)?;
    let (took, after) = (begun.elapsed(), dropped()?);
    ensure!(after > before, "nothing was dropped");
    Ok((after - before) as f64 / took.as_secs_f64())
}

/// Bound to the device; past the queueing discipline.
fn packet_socket(device: u32) -> io::Result<OwnedFd> {
    const PACKET_QDISC_BYPASS: libc::c_int = 20;
    // SAFETY: a plain call.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = device.cast_signed();
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of the address.
    if unsafe { libc::bind(fd, (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads one int.
    if unsafe { libc::setsockopt(fd, libc::SOL_PACKET, PACKET_QDISC_BYPASS, (&raw const on).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
