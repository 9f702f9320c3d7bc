//! The one place that touches packet memory.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use ingress_ebpf::flow::{FlowKey, mapped};
use ingress_ebpf::header::{ETHERNET_LEN, IPPROTO_TCP, IPV4_LEN, Ipv4, TCP_LEN, Tcp};
use ingress_ebpf::rewrite::Difference;

const ETH_P_IP: u16 = 0x0800;
const BPF_F_PSEUDO_HDR: u64 = 16;
const IP_OFFSET: usize = ETHERNET_LEN;
/// Where TCP starts behind an IPv4 header without options.
pub(super) const TCP_OFFSET: usize = ETHERNET_LEN + IPV4_LEN;
const TCP_CHECK_OFFSET: u32 = TCP_OFFSET as u32 + 16;

pub(super) struct Packet {
    skb: *mut __sk_buff,
}

/// A TCP packet's headers, copied.
pub(super) struct Headers {
    pub(super) ip: Ipv4,
    pub(super) tcp: Tcp,
    pub(super) key: FlowKey,
}

/// What the first look at a packet finds.
pub(super) enum Look {
    /// Not for us.
    Other,
    Tcp(Headers),
    /// TCP, but with IP options or in fragments: never spliced, only checked against the flow table.
    Odd(FlowKey, Odd),
}

#[derive(Clone, Copy)]
pub(super) enum Odd {
    Options,
    Fragment,
}

impl Packet {
    pub(super) fn new(context: &TcContext) -> Self {
        Self { skb: context.skb.skb }
    }

    #[inline(always)]
    fn field<T: Copy>(&self, read: impl Fn(&__sk_buff) -> T) -> T {
        // SAFETY: the kernel hands every program a valid context; the verifier checks each access.
        read(unsafe { &*self.skb })
    }

    #[inline(always)]
    pub(super) fn arrived_on(&self) -> u32 {
        self.field(|skb| skb.ingress_ifindex)
    }

    #[inline(always)]
    pub(super) fn device(&self) -> u32 {
        self.field(|skb| skb.ifindex)
    }

    #[inline(always)]
    pub(super) fn priority(&self) -> u32 {
        self.field(|skb| skb.priority)
    }

    #[inline(always)]
    pub(super) fn set_priority(&self, priority: u32) {
        // SAFETY: as in `field`; priority is writable for tc programs.
        unsafe { (*self.skb).priority = priority };
    }

    #[inline(always)]
    pub(super) fn len(&self) -> u32 {
        self.field(|skb| skb.len)
    }

    /// The id in a VLAN tag that stands beside the packet; 0: none, or a priority only.
    #[inline(always)]
    pub(super) fn vlan(&self) -> u32 {
        self.field(|skb| if skb.vlan_present != 0 { skb.vlan_tci & 0x0fff } else { 0 })
    }

    pub(super) fn raw(&self) -> *mut __sk_buff {
        self.skb
    }

    /// A pointer to `T` at `offset`, if the linear part of the packet holds it whole.
    #[inline(always)]
    pub(super) fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let (data, end) = self.field(|skb| (skb.data as usize, skb.data_end as usize));
        if data + offset + size_of::<T>() > end {
            return None;
        }
        Some((data + offset) as *mut T)
    }

    #[inline(always)]
    pub(super) fn look(&self) -> Look {
        let (protocol, vlan) = self.field(|skb| (skb.protocol, skb.vlan_present));
        if protocol as u16 != ETH_P_IP.to_be() || vlan != 0 {
            return Look::Other;
        }
        if self.at::<[u8; TCP_OFFSET + TCP_LEN]>(0).is_none() && self.pull(TCP_OFFSET + TCP_LEN).is_none() {
            return Look::Other;
        }
        let Some(ip) = self.at::<Ipv4>(IP_OFFSET) else { return Look::Other };
        // SAFETY: `at` has checked the bounds; the kernel aligns the IP header to four bytes.
        let ip = unsafe { *ip };
        if ip.protocol != IPPROTO_TCP || ip.is_later_fragment() {
            return Look::Other;
        }
        if ip.version_ihl != 0x45 {
            let mut ports = [0u16; 2];
            let offset = IP_OFFSET + ip.header_len();
            return match self.load(offset, &mut ports) {
                Some(()) => Look::Odd(key(&ip, ports[0], ports[1]), Odd::Options),
                None => Look::Other,
            };
        }
        let Some(tcp) = self.at::<Tcp>(TCP_OFFSET) else { return Look::Other };
        // SAFETY: as above.
        let tcp = unsafe { *tcp };
        let key = key(&ip, tcp.source_port, tcp.destination_port);
        if ip.is_fragment() { Look::Odd(key, Odd::Fragment) } else { Look::Tcp(Headers { ip, tcp, key }) }
    }

    /// Writes both headers back and repairs the TCP checksum by `difference`.
    #[inline(always)]
    pub(super) fn write(&self, headers: &Headers, difference: Difference) -> Option<()> {
        // SAFETY: bounds are checked by `at`, alignment as in `look`.
        unsafe {
            *self.at::<Ipv4>(IP_OFFSET)? = headers.ip;
            *self.at::<Tcp>(TCP_OFFSET)? = headers.tcp;
        }
        if difference.pseudo != 0 {
            self.replace_checksum(difference.pseudo, BPF_F_PSEUDO_HDR)?;
        }
        self.fix_checksum(difference.header)
    }

    /// Repairs the TCP checksum after `difference` in the TCP header or payload.
    #[inline(always)]
    pub(super) fn fix_checksum(&self, difference: u32) -> Option<()> {
        self.replace_checksum(difference, 0)
    }

    #[inline(always)]
    fn replace_checksum(&self, difference: u32, flags: u64) -> Option<()> {
        // SAFETY: the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.skb, TCP_CHECK_OFFSET, 0, difference as u64, flags) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    pub(super) fn swap_ethernet_addresses(&self) -> Option<()> {
        let addresses = self.at::<[[u16; 3]; 2]>(0)?;
        // SAFETY: `at` has checked the bounds.
        unsafe {
            let [destination, source] = *addresses;
            *addresses = [source, destination];
        }
        Some(())
    }

    #[inline(always)]
    fn pull(&self, len: usize) -> Option<()> {
        // SAFETY: the helper checks `len`.
        (unsafe { bpf_skb_pull_data(self.skb, len as u32) } == 0).then_some(())
    }

    #[inline(always)]
    pub(super) fn load<T>(&self, offset: usize, into: &mut T) -> Option<()> {
        load(self.skb, offset as u32, into)
    }
}

#[inline(always)]
pub(super) fn load<T>(skb: *mut __sk_buff, offset: u32, into: &mut T) -> Option<()> {
    // SAFETY: the helper writes exactly `size_of::<T>()` bytes or fails.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut *into).cast(), size_of::<T>() as u32) };
    (result == 0).then_some(())
}

#[inline(always)]
pub(super) fn store<T>(skb: *mut __sk_buff, offset: u32, from: &T) -> Option<()> {
    // SAFETY: the helper reads exactly `size_of::<T>()` bytes and checks the offset.
    let result = unsafe { bpf_skb_store_bytes(skb, offset, (&raw const *from).cast(), size_of::<T>() as u32, 0) };
    (result == 0).then_some(())
}

#[inline(always)]
fn key(ip: &Ipv4, source_port: u16, destination_port: u16) -> FlowKey {
    FlowKey {
        source: mapped(ip.source.to_ne_bytes()),
        destination: mapped(ip.destination.to_ne_bytes()),
        source_port: source_port.to_ne_bytes(),
        destination_port: destination_port.to_ne_bytes(),
    }
}
